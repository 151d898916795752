"""Artifacts in a folder of this machine.

One folder a name, one a version: ``NAME/VERSION/info.json`` beside ``blobs/``. A version is written
under a hidden name and renamed, so it is there whole or not at all; its number is never used again.
"""

import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from lensd_server.engine.blobs import sync_folder, write_blobs, write_through

#: What lies half-written for longer than this belongs to a process that died.
_ABANDONED_S = 3600.0


class FolderShelf:
    """A :class:`lensd_server.engine.artifacts.Shelf` in a folder, which need not exist."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._clock = folder, clock

    def names(self) -> Sequence[str]:
        """Names of folders."""
        return [path.name for path in self._folder.glob("*") if path.is_dir()]

    def versions(self, name: str) -> Sequence[int]:
        """Folders named by numbers."""
        return [int(path.name) for path in (self._folder / name).glob("*") if path.name.isdecimal()]

    def description(self, name: str, version: int) -> bytes:
        """See :meth:`lensd_server.engine.artifacts.Shelf.description`."""
        return (self._folder / name / str(version) / "info.json").read_bytes()

    def blob(self, name: str, version: int, blob: str) -> bytes:
        """See :meth:`lensd_server.engine.artifacts.Shelf.blob`."""
        return (self._folder / name / str(version) / "blobs" / blob).read_bytes()

    def put(self, name: str, blobs: Mapping[str, bytes], describe: Callable[[int], bytes]) -> int:
        """See :meth:`lensd_server.engine.artifacts.Shelf.put`; on the disk itself when this returns."""
        home = self._folder / name
        home.mkdir(parents=True, exist_ok=True)
        self._sweep(home)
        writing = Path(tempfile.mkdtemp(prefix=".writing-", dir=home))
        try:
            write_blobs(writing / "blobs", blobs)
            while True:
                version = _next_version(home)
                write_through(writing / "info.json", describe(version))
                try:
                    writing.rename(home / str(version))
                except OSError:
                    # Somebody else stored that version meanwhile: a folder never replaces a full one.
                    if not (home / str(version)).exists():
                        raise
                    continue
                sync_folder(home)
                return version
        finally:
            shutil.rmtree(writing, ignore_errors=True)

    def remove(self, name: str, version: int) -> None:
        """See :meth:`lensd_server.engine.artifacts.Shelf.remove`."""
        folder = self._folder / name / str(version)
        # Renamed first: half a deleted artifact must not look like an artifact. The empty folder
        # stays, so that a number once given never comes to mean something else.
        doomed = folder.with_name(f".{version}.deleted")
        folder.rename(doomed)
        for inside in doomed.iterdir():
            shutil.rmtree(inside) if inside.is_dir() else inside.unlink()

    def used_bytes(self) -> int:
        """See :meth:`lensd_server.engine.artifacts.Shelf.used_bytes`."""
        return sum(_size(Path(where, file)) for where, _, files in os.walk(self._folder) for file in files)

    def _sweep(self, home: Path) -> None:
        for left in home.glob(".writing-*"):
            try:
                if self._clock() - left.stat().st_mtime > _ABANDONED_S:
                    shutil.rmtree(left, ignore_errors=True)
            except OSError:
                continue  # its writer has just finished


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:  # just removed, or renamed to where it is whole
        return 0


def _next_version(home: Path) -> int:
    numbers = [int(m[1]) for p in home.iterdir() if (m := re.fullmatch(r"\.?(\d+)(\.deleted)?", p.name))]
    return max(numbers, default=0) + 1
