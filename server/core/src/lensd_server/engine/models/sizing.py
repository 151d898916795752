"""How large a model will be in memory, read from the headers of its files before any weight is."""

import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from lensd_api import LoadFailed

#: What forwards need beside the weights, as a share of them, until it has been measured.
WORKING_SHARE = 0.1

#: Unless it is configured, keys and values of one model take at most this part of a device's budget.
CACHE_SHARE = 8

#: Safetensors' names for element types that a load converts to the one asked for.
_FLOATS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_OTHERS = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1, "U64": 8, "U32": 4, "U16": 2}
#: A header is JSON of a few kilobytes a tensor at most; a larger one is not a header.
_MAX_HEADER = 100 * 1024 * 1024

Elements = Mapping[str, int]


def needed_bytes(checkpoint: Path, dtype: torch.dtype | str) -> int:
    """What a model is thought to need before it was loaded: its weights, and a share for forwards.

    ``checkpoint`` is a folder or a GGUF file. Raises LoadFailed.
    """
    weights = gguf_bytes(checkpoint, dtype) if checkpoint.is_file() else folder_bytes(checkpoint, dtype)
    return round(weights * (1 + WORKING_SHARE))


def cache_bytes(configured: int | None, usual: int, budget: int | None) -> int:
    """Most bytes of keys and values that a model keeps: ``usual`` on its device, unless that has a small budget."""
    if configured is not None:
        return configured
    return usual if budget is None else min(usual, budget // CACHE_SHARE)


def folder_bytes(folder: Path, dtype: torch.dtype | str) -> int:
    """Bytes of the weights in ``folder`` once they are of ``dtype`` ("auto": as they were saved).

    Raises LoadFailed for a file that is no safetensors file or is shorter than its header says.
    """
    elements: Counter[str] = Counter()
    for file in weight_files(folder):
        elements.update(safetensors_elements(file))
    return dense_bytes(elements, dtype)


def gguf_bytes(file: Path, dtype: torch.dtype | str) -> int:
    """The same for a GGUF file, whose weights are expanded to dense ones, of float32 unless told otherwise."""
    # Imported here: whoever converted the file before does not need it.
    from gguf import GGUFReader

    try:
        tensors: Any = GGUFReader(file).tensors
        elements = sum(int(tensor.n_elements) for tensor in tensors)
    except (ValueError, KeyError, IndexError, OSError) as error:
        raise LoadFailed(f"the header of {file} cannot be read; fetch the file again") from error
    return dense_bytes({"F32": elements}, dtype)


def dense_bytes(elements: Elements, dtype: torch.dtype | str) -> int:
    """Bytes of ``elements``, counted by safetensors' type names, with floats converted to ``dtype``."""
    wanted = dtype.itemsize if isinstance(dtype, torch.dtype) else None
    return sum(
        count * (wanted or _FLOATS[kind] if kind in _FLOATS else _OTHERS.get(kind, 4))
        for kind, count in elements.items()
    )


def weight_files(folder: Path) -> list[Path]:
    """The files that transformers reads: those the index names, else the one, else all there are."""
    index = folder / "model.safetensors.index.json"
    try:
        if index.is_file():
            named: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return [folder / name for name in sorted(set(named.values()))]
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise LoadFailed(f"{index} cannot be read; fetch the checkpoint again") from error
    single = folder / "model.safetensors"
    return [single] if single.is_file() else sorted(folder.glob("*.safetensors"))


def safetensors_elements(file: Path) -> Elements:
    """Elements in ``file`` by element type. Raises LoadFailed."""
    damaged = f"the weights in {file.parent} are damaged or incomplete; fetch the checkpoint again"
    try:
        with file.open("rb") as opened:
            (length,) = struct.unpack("<Q", opened.read(8))
            if length > _MAX_HEADER:
                raise LoadFailed(damaged)
            header: Mapping[str, Any] = json.loads(opened.read(length))
        tensors = [entry for name, entry in header.items() if name != "__metadata__"]
        end = max((int(entry["data_offsets"][1]) for entry in tensors), default=0)
        if file.stat().st_size < 8 + length + end:
            raise LoadFailed(damaged)
        return _count((str(entry["dtype"]), entry["shape"]) for entry in tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise LoadFailed(damaged) from error


def _count(tensors: Iterable[tuple[str, Any]]) -> Elements:
    elements: Counter[str] = Counter()
    for kind, shape in tensors:
        elements[kind] += math.prod(int(axis) for axis in shape)
    return elements
