"""SHA-256 of files, remembered: hashing half a gigabyte at every start would cost a second.

A digest is remembered by path, size and time of modification. Each file has a memo of its own,
replaced atomically, so that daemons sharing a cache need no lock.
"""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import structlog

_BLOCK = 4 * 1024 * 1024
_log = structlog.get_logger("lensd.models")


class Digests:
    """Digests of files, with a memo under ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def of_file(self, path: Path) -> str:
        """SHA-256 of the contents of ``path``, in hexadecimal. Raises OSError."""
        stat = path.stat()
        known = {"path": str(path), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
        memo = self._folder / f"{hashlib.sha256(str(path).encode()).hexdigest()}.json"
        remembered = _read(memo)
        if {key: remembered.get(key) for key in known} == known:
            return str(remembered["sha256"])
        digest = sha256(path)
        remember(memo, json.dumps({**known, "sha256": digest}).encode())
        return digest

    def of_files(self, root: Path, paths: Iterable[Path]) -> str:
        """SHA-256 over names (relative to ``root``) and contents of ``paths``, whatever their order."""
        total = hashlib.sha256()
        for path in sorted(paths, key=lambda p: p.relative_to(root).as_posix()):
            total.update(f"{path.relative_to(root).as_posix()}\0{self.of_file(path)}\n".encode())
        return total.hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """``path`` holds either what it held or all of ``content``, whenever the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".writing-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def remember(path: Path, content: bytes) -> None:
    """As :func:`write_atomically`, but where the cache cannot be written it is done without."""
    try:
        write_atomically(path, content)
    except OSError as error:
        _log.warning("the cache cannot be written", path=str(path), problem=error.strerror or str(error))


def _read(memo: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(memo.read_bytes())
    except (OSError, ValueError):  # absent or damaged: hash again
        return {}
    if not isinstance(content, dict) or "sha256" not in content:
        return {}
    return cast("dict[str, Any]", content)


def sha256(path: Path) -> str:
    """SHA-256 of the contents of ``path``, in hexadecimal, read now."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            total.update(block)
    return total.hexdigest()
