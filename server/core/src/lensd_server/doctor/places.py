"""Folders to write to and addresses to listen on."""

import os
import shlex
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

from lensd_server.addresses import socket_path, split_address
from lensd_server.doctor.finding import Finding, Verdict
from lensd_server.settings import Settings

_MIB = 1024 * 1024
#: With less than this nothing that matters can be written.
_LEAST_BYTES = 16 * _MIB
#: With less than this a conversion of any model that is worth it fails.
_CACHE_BYTES = 1024 * _MIB


def examine_places(settings: Settings) -> Iterator[Finding]:
    """Whether the daemon could write and listen where it is told to."""
    server, limits = settings.server, settings.limits
    yield _folder(
        "state folder",
        server.state_dir,
        limits.max_artifact_bytes,
        "an artifact of limits.max_artifact_bytes would not fit",
    )
    yield _folder(
        "cache folder", server.cache_dir, _CACHE_BYTES, "converted weights take several times a GGUF file"
    )
    for key in ("listen", "admin_listen", "metrics_listen"):
        yield _port(key, getattr(server, key))


def _folder(what: str, folder: Path, wanted: int, why: str) -> Finding:
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        return Finding(
            what,
            Verdict.BROKEN,
            f"{folder} cannot be written",
            f"make {there} writable, or choose another folder in [server] of lensd.toml",
        )
    free = shutil.disk_usage(there).free
    text = f"{folder}, {free / _MIB:,.0f} MiB free"
    if free < wanted:
        verdict = Verdict.BROKEN if free < _LEAST_BYTES else Verdict.NOTE
        return Finding(what, verdict, f"{text}: {why}", "make room, or choose a folder on another disk")
    return Finding(what, Verdict.FINE, text)


def _port(key: str, address: str) -> Finding:
    what = f"server.{key}"
    if (path := socket_path(address)) is not None:
        return _socket(what, path)
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


def _socket(what: str, path: Path) -> Finding:
    if not os.access(path.parent, os.W_OK | os.X_OK):
        text = f"unix:{path}: its folder is not there or cannot be written"
        return Finding(what, Verdict.BROKEN, text, f"mkdir -p -m 700 {shlex.quote(str(path.parent))}")
    return Finding(what, Verdict.FINE, f"unix:{path} can be made")
