"""The tensors of a checkpoint in memory of their own, read once and by several threads.

A mapped file would change the resident model when somebody overwrites it, and end the process when it is
cut short; reading it whole and then taking the tensors out of it needs room for all of them twice.
"""

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lensd_api import LoadFailed

#: Reading is copying between memory that the kernel has to clear first: two cores do it in half the time.
_THREADS = min(4, os.cpu_count() or 1)

_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def read_checkpoint(folder: Path) -> dict[str, Tensor]:
    """Every tensor of the safetensors checkpoint in ``folder``, by name.

    Raises LoadFailed for one without weights or with a missing shard, SafetensorError for a damaged one.
    """
    tensors: dict[str, Tensor] = {}
    with ThreadPoolExecutor(_THREADS, "lensd-read") as readers:
        for file in weight_files(folder):
            tensors |= _read_file(file, readers)
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights. Raises LoadFailed."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    try:
        shards: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted({folder / Path(shard).name for shard in shards.values()})
    except FileNotFoundError as error:
        raise LoadFailed(
            f"{folder} holds no model.safetensors and no model.safetensors.index.json; weights in other formats "
            "are not read: convert them to safetensors"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoadFailed(f"{index} cannot be read as the index of a checkpoint; fetch it again") from error
    if missing := [file.name for file in files if not file.is_file()]:
        raise LoadFailed(f"the checkpoint in {folder} lacks {', '.join(missing[:3])}; fetch it again")
    return files


def _read_file(path: Path, readers: ThreadPoolExecutor) -> dict[str, Tensor]:
    # The library checks the header against the size of the file.
    with safe_open(path, framework="pt"):
        pass
    with path.open("rb", buffering=0) as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header: dict[str, Any] = json.loads(file.read(length))
        except (ValueError, OverflowError, MemoryError) as error:  # another file by now
            raise SafetensorError(f"{path} was changed while it was read") from error
        header.pop("__metadata__", None)

        def read(entry: Mapping[str, Any]) -> Tensor:
            tensor = torch.empty(entry["shape"], dtype=_dtype(entry["dtype"], path))
            _fill(tensor, file.fileno(), 8 + length + int(entry["data_offsets"][0]), path)
            return tensor

        return dict(zip(header, readers.map(read, header.values()), strict=True))


def _dtype(name: str, path: Path) -> torch.dtype:
    try:
        return _DTYPES[name]
    except KeyError:
        raise LoadFailed(
            f"{path} holds numbers of type {name}, which are not read; convert it to one of {', '.join(_DTYPES)}"
        ) from None


def _fill(tensor: Tensor, file: int, offset: int, path: Path) -> None:
    if not tensor.numel():
        return
    content: Any = tensor.view(-1).view(torch.uint8).numpy()
    room = memoryview(content)
    while room:
        count = os.preadv(file, [room], offset)
        if not count:  # cut short since its header was checked
            raise SafetensorError(f"{path} ends before its last tensor")
        room, offset = room[count:], offset + count
