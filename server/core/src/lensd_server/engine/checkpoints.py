"""Checkpoints on disk: what lets an identical request go on where one was cut off, even by kill -9.

One file a request, named by a digest of all that makes it identical and replaced atomically. A file
that cannot be trusted counts as absent: the analysis then starts from its beginning. So many are kept
for all callers together; whose are too many loses its own oldest.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import structlog
import torch
from torch import Tensor

from lensd_api import BaseParams
from lensd_server.engine.artifacts import Origin
from lensd_server.engine.blobs import check_blobs, digest_of, digests_of

_LENGTH_BYTES = 8
#: More than any header of ours: what is longer is nobody's.
_MAX_HEADER_BYTES = 1024**2
_log = structlog.get_logger("lensd.checkpoints")


def request_key(origin: Origin, params: BaseParams, tensors: Mapping[str, Tensor]) -> str:
    """A digest of all that makes two requests identical; names of models do not matter."""
    dense = {
        name: [str(t.dtype), list(t.shape), hashlib.sha256(_raw(t)).hexdigest()]
        for name, t in tensors.items()
    }
    return digest_of(
        {
            "analyzer": [origin.distribution, origin.analyzer, origin.version],
            "revision": origin.revision,
            "params": json.loads(params.model_dump_json()),
            "tensors": dense,
        }
    )


class DiskCheckpoints:
    """Checkpoints under a folder, which need not exist. Safe to use from any thread."""

    def __init__(self, folder: Path, max_bytes: int, kept: int) -> None:
        self._folder, self._max_bytes, self._kept = folder, max_bytes, kept

    def load(self, key: str) -> dict[str, bytes]:
        """The blobs saved last under ``key``; empty when there are none that can be trusted."""
        try:
            return _unpack((self._folder / key).read_bytes())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("checkpoint is damaged and ignored", key=key[:12], problem=type(error).__name__)
            return {}

    def save(self, key: str, blobs: Mapping[str, bytes], caller: str = "") -> None:
        """Replaces what was saved under ``key``, for ``caller``. Raises TooLarge, InvalidRequest, OSError."""
        check_blobs(blobs, self._max_bytes, "a checkpoint")
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=self._folder, prefix=".writing-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                header = _header(blobs, caller)
                file.write(len(header).to_bytes(_LENGTH_BYTES, "little"))
                file.write(header)
                for content in blobs.values():
                    file.write(content)
            Path(name).replace(self._folder / key)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        self._prune()

    def discard(self, key: str) -> None:
        """Forgets ``key``: its analysis is complete."""
        (self._folder / key).unlink(missing_ok=True)

    def _prune(self) -> None:
        """Of whoever has the most the oldest goes: nobody loses the only one to another that has several."""
        dated: list[tuple[float, Path, str]] = []
        for path in self._folder.iterdir():
            if path.name.startswith("."):  # being written
                continue
            try:
                dated.append((path.stat().st_mtime, path, _caller(path)))
            except OSError:
                continue  # another thread has just replaced or discarded it
        dated.sort()
        while len(dated) > self._kept:
            shares = Counter(caller for _, _, caller in dated)
            most = max(shares.values())
            oldest = next(one for one in dated if shares[one[2]] == most)
            dated.remove(oldest)
            oldest[1].unlink(missing_ok=True)


def _header(blobs: Mapping[str, bytes], caller: str) -> bytes:
    digests = digests_of(blobs)
    described = [[name, len(content), digests[name]] for name, content in blobs.items()]
    return json.dumps({"caller": caller, "blobs": described}).encode()


def _caller(path: Path) -> str:
    """Whose checkpoint it is; nobody's if that cannot be read. Raises OSError."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        try:
            return str(json.loads(file.read(min(size, _MAX_HEADER_BYTES)))["caller"])
        except (ValueError, KeyError, TypeError):
            return ""


def _unpack(content: bytes) -> dict[str, bytes]:
    """Raises ValueError, KeyError or TypeError for anything but what :meth:`DiskCheckpoints.save` wrote."""
    start = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header = cast("list[list[Any]]", json.loads(content[_LENGTH_BYTES:start])["blobs"])
    blobs: dict[str, bytes] = {}
    for name, size, digest in header:
        blob = content[start : start + size]
        if hashlib.sha256(blob).hexdigest() != digest:
            raise ValueError(f"blob {name} is damaged")
        blobs[name] = blob
        start += size
    return blobs


def _raw(tensor: Tensor) -> bytes:
    # NumPy knows no bfloat16: compare bytes.
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
