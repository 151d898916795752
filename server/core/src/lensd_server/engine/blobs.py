"""Named blobs on disk with their digests: what artifacts and checkpoints have in common.

Invariant: nothing is read back whose SHA-256 is not the one written with it, and no name that came
from outside becomes a path before it matched the pattern.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensd_api import InvalidRequest, TooLarge
from lensd_api.artifacts import NAME_PATTERN

_NAME = re.compile(NAME_PATTERN)


class Damaged(Exception):
    """What lies on disk is not what was written; the message says which part."""


def is_name(name: str) -> bool:
    """Whether ``name`` may name an artifact or a blob."""
    return _NAME.fullmatch(name) is not None


def check_blobs(blobs: Mapping[str, bytes], max_bytes: int, what: str) -> int:
    """Size of ``blobs`` in bytes. Raises InvalidRequest for a bad name, TooLarge beyond ``max_bytes``."""
    for name in blobs:
        if not is_name(name):
            raise InvalidRequest(f"blob name {name[:140]!r} of {what} does not match {NAME_PATTERN}")
    size = sum(len(content) for content in blobs.values())
    if size > max_bytes:
        raise TooLarge(
            f"{what} would take {size} bytes; this server keeps at most {max_bytes} "
            "(setting limits.max_artifact_bytes)"
        )
    return size


def digests_of(blobs: Mapping[str, bytes]) -> dict[str, str]:
    """SHA-256 of each blob, in hexadecimal."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in sorted(blobs.items())}


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON-like value in its one canonical spelling. Raises ValueError, TypeError."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_blobs(folder: Path, blobs: Mapping[str, bytes]) -> None:
    """One file a blob in ``folder``, on the disk itself when this returns."""
    folder.mkdir()
    for name, content in blobs.items():
        write_through(folder / name, content)


def write_through(path: Path, content: bytes) -> None:
    """Writes ``path`` and waits until the disk has it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Waits until the disk has the names in ``folder``: a rename is no more durable than its folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_digest(name: str, content: bytes, expected: str) -> None:
    """Raises Damaged unless the SHA-256 of ``content`` is ``expected``."""
    if hashlib.sha256(content).hexdigest() != expected:
        raise Damaged(f"blob {name} has another SHA-256 than when it was stored")
