"""GGUF to safetensors, once: dequantising takes 20 s, reading what it gave takes a third of one.

A conversion is keyed by the file's SHA-256 and :data:`VERSION`. It is written aside and renamed
when complete, so that a folder under its final name is always whole; a file lock keeps daemons that
share a cache from doing the work twice.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from lensd_api import LoadFailed
from lensd_server.engine.disk import is_full
from lensd_server.engine.models.digests import Digests, sha256

#: Raise it when what a conversion writes changes.
VERSION = 2

_ASIDE = ".converting-"
#: SHA-256 of every file of a conversion, by name.
_MANIFEST = "manifest.sha256"

_log = structlog.get_logger("lensd.models")

Convert = Callable[[Path, Path], None]


def convert_gguf(file: Path, folder: Path) -> None:
    """Writes dense fp32 weights, configuration and tokenizer of a GGUF ``file`` into ``folder``."""
    # Imported here: a cache hit needs neither gguf nor accelerate.
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )
    # The weights are dense now; saving refuses while the model believes that it is quantised.
    if hasattr(model.config, "quantization_config"):
        delattr(model.config, "quantization_config")
    for attribute, value in (("hf_quantizer", None), ("is_quantized", False)):
        if hasattr(model, attribute):
            setattr(model, attribute, value)
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(
        file.parent, gguf_file=file.name, local_files_only=True, trust_remote_code=False
    )
    tokenizer.save_pretrained(folder)


class ConversionCache:
    """Converted checkpoints under ``folder``."""

    def __init__(self, folder: Path, digests: Digests, convert: Convert = convert_gguf) -> None:
        self._folder, self._digests, self._convert = folder, digests, convert

    def find(self, file: Path) -> Path | None:
        """Where ``file`` lies converted, or ``None``."""
        target = self._target(file)
        return target if target.is_dir() else None

    def converted(self, file: Path) -> Path:
        """The folder that ``file`` is converted into; converts it where that has not happened.

        Blocks while another process converts the same file. Raises LoadFailed where the cache has no room.
        """
        target = self._target(file)
        if self._is_whole(target):
            return target
        try:
            return self._convert_once(file, target)
        except Exception as error:
            if isinstance(error, PermissionError) or is_full(error):
                fault = "cannot be written" if isinstance(error, PermissionError) else "has no room"
                raise LoadFailed(
                    f"the cache folder {self._folder} (setting server.cache_dir) {fault} for the converted weights "
                    f"of {file.name}, which take several times the file's {file.stat().st_size / 1e6:.0f} MB",
                    reason="CACHE_FULL",
                ) from error
            raise

    def _convert_once(self, file: Path, target: Path) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        with _locked(self._folder / f".lock-{target.name}"):
            if self._is_whole(target):  # somebody else did it while we waited
                return target
            if target.is_dir():
                _log.warning("converted weights are damaged, converting again", folder=str(target))
                shutil.rmtree(target)
            # We hold the lock, so whatever lies aside was left by a process that died.
            for left in self._folder.glob(f"{_ASIDE}{target.name}-*"):
                shutil.rmtree(left, ignore_errors=True)
            aside = self._folder / f"{_ASIDE}{target.name}-{os.getpid()}"
            aside.mkdir()
            try:
                self._convert(file, aside)
                digests = {path.name: sha256(path) for path in sorted(aside.iterdir())}
                (aside / _MANIFEST).write_text(json.dumps(digests), encoding="utf-8")
                aside.rename(target)
            except BaseException:
                shutil.rmtree(aside, ignore_errors=True)
                raise
        return target

    def _is_whole(self, target: Path) -> bool:
        """Whether every file is as the conversion left it; hashes again only what was touched since."""
        try:
            manifest: dict[str, str] = json.loads((target / _MANIFEST).read_text(encoding="utf-8"))
            return all(self._digests.of_file(target / name) == digest for name, digest in manifest.items())
        except (OSError, ValueError, AttributeError):
            return False

    def _target(self, file: Path) -> Path:
        return self._folder / f"{self._digests.of_file(file)}-v{VERSION}"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on ``path``; the system lets go of it should the process die."""
    with path.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
