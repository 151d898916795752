"""How much memory forwards need beside the weights, measured on one."""

import json
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from lensd_server.engine.anatomy.inspect import InspectedModel
from lensd_server.engine.batching.price import time_forward
from lensd_server.engine.device import Device
from lensd_server.engine.models.digests import write_atomically

#: Tokens of the row that is measured.
LENGTH = 64


class PeakOfTensors(TorchDispatchMode):
    """Most bytes of new tensors that are alive at once, on any device, on this thread.

    What an operation uses inside and frees before it returns is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive = 0
        self._known: set[int] = set()
        self._lock = threading.Lock()  # a storage may be freed on any thread

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Runs ``func`` and counts what it made."""
        inputs = {id(t.untyped_storage()) for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in inputs:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        with self._lock:
            if key in self._known:
                return
            self._known.add(key)
            self._alive += size
            self.peak = max(self.peak, self._alive)
        weakref.finalize(storage, self._forget, key, size).atexit = False

    def _forget(self, key: int, size: int) -> None:
        with self._lock:
            self._known.discard(key)
            self._alive -= size


class WorkingMemory:
    """Measurements, remembered under ``folder`` by model and element type, if there is one."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def bytes_for(self, model: InspectedModel, device: Device, revision: str, batch_tokens: int) -> int:
        """What a batch of ``batch_tokens`` needs: it grows with the tokens, so one row is enough to know."""
        length = min(LENGTH, model.anatomy.context_length)
        batch = self._of_one(model, device, revision, length) * max(1.0, batch_tokens / length)
        return round(batch) + device.library_bytes

    def _of_one(self, model: InspectedModel, device: Device, revision: str, length: int) -> int:
        if self._folder is None:
            return measure(model, device, length)
        where = "" if device.is_cpu else "-cuda"
        memo = self._folder / f"{revision}-{model.module.dtype}-{length}{where}.json"
        known = _read(memo)
        if known is None:
            known = measure(model, device, length)
            write_atomically(memo, json.dumps({"bytes": known}).encode())
        return known


def measure(model: InspectedModel, device: Device, length: int) -> int:
    """Most bytes that one row of ``length`` tokens holds at once."""
    with PeakOfTensors() as watched:
        time_forward(model, device, [length])
    return watched.peak


def _read(memo: Path) -> int | None:
    try:
        content: Any = json.loads(memo.read_bytes())
        return max(0, int(content["bytes"]))
    except (OSError, ValueError, TypeError, KeyError):  # absent or damaged: measure again
        return None
