"""The daemon's folders on disk: can they be written, and what did a killed process leave there?

Everything is written under a hidden name and renamed when it is whole, so what still has such a name
belongs to a write that is under way or to a process that died. A lock tells the two apart: every
daemon shares it while it lives, and only one that could have it to itself sweeps.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import structlog

from lensd_server.engine.disk import is_full

#: Names that only something unfinished has.
UNFINISHED = (".writing-", ".converting-")
#: ``.N.deleted``: an artifact whose contents may go; the empty folder stays to keep its number taken.
DELETED = ".deleted"

_PROBE = b"\0" * 4096
_log = structlog.get_logger("lensd.folders")


class Unusable(Exception):
    """A folder cannot be written; the message says which and what to do."""


@contextmanager
def claim(folder: Path, setting: str) -> Iterator[tuple[Path, ...]]:
    """Makes ``folder`` where needed, checks that it can be written, and keeps its lock within the context.

    Gives the paths that a killed process had left and that are gone now. A full disk is worth an error
    in the log, no more: what needs room will say so, and the rest still works. Raises Unusable.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write_probe(folder)
        lock = (folder / ".lock").open("wb")
    except OSError as error:
        if not is_full(error):
            raise Unusable(
                f"{folder} (setting {setting}) cannot be written: {error.strerror or error}; make it writable "
                "for the user the daemon runs as, or choose another folder"
            ) from error
        _log.error("no room left on the disk", folder=str(folder), setting=setting)
        yield ()
        return
    with lock:
        swept: tuple[Path, ...] = ()
        if _lock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
            swept = tuple(_sweep(folder))
        # Not taken in one step, which is harmless: nothing of ours is being written yet.
        _lock(lock, fcntl.LOCK_SH)
        if swept:
            _log.info("removed what a killed process left", folder=str(folder), count=len(swept))
        yield swept


def _write_probe(folder: Path) -> None:
    with tempfile.TemporaryFile(dir=folder) as probe:
        probe.write(_PROBE)
        probe.flush()
        os.fsync(probe.fileno())


def _lock(file: IO[bytes], how: int) -> bool:
    try:
        fcntl.flock(file, how)
    except OSError:  # somebody else has it, or the file system knows no locks
        return False
    return True


def _sweep(folder: Path) -> Iterator[Path]:
    for where, names, files in os.walk(folder):
        for name in [n for n in (*names, *files) if n.startswith(UNFINISHED)]:
            path = Path(where, name)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
            yield path
        for name in [n for n in names if n.startswith(".") and n.endswith(DELETED)]:
            for inside in Path(where, name).iterdir():
                shutil.rmtree(inside, ignore_errors=True) if inside.is_dir() else inside.unlink()
                yield inside
        names[:] = [n for n in names if not n.startswith(".")]
