"""Everything that depends on the device a model is on, in one place.

One :class:`Device` per resident model: its element type, its stream, copies both ways, and what
the device says about memory.
"""

import dataclasses
import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from lensd_api import DeviceLost, DeviceOutOfMemory, LoadFailed
from lensd_server.engine import memory
from lensd_server.engine.batching.turn import Turn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: The least and the most padded tokens a batch may hold, whatever is measured at warm-up: with more,
#: everybody only waits for the slowest row, and what a batch occupies is bounded.
BATCH_TOKENS = {"cpu": (128, 2048), "cuda": (1024, 16384)}

#: Bytes of keys and values that may be kept of a model's rows, or laid out for one batch.
CACHE_BYTES = {"cpu": 2**29, "cuda": 2**32}

#: How long callers that were just answered may be waited for, in fixed parts of a forward. Whoever comes back
#: in time spares one. On the CPU answering takes the very cores that a forward would run on, so a wait costs less.
WAITS = {"cpu": 3.0, "cuda": 1.0}


class Device:
    """Where a model lives.

    ``cpu_turn`` is shared by every model on the CPU; see :mod:`lensd_server.engine.batching.turn`. On a
    GPU each model has a turn of its own: its forwards and what else is computed for its callers alternate.
    """

    def __init__(self, device: torch.device, cpu_turn: Turn | None = None) -> None:
        self.torch = device
        self.turn = cpu_turn if cpu_turn is not None and device.type == "cpu" else Turn()
        # A stream of its own lets two models share a GPU without waiting for each other.
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @property
    def name(self) -> str:
        """``"cpu"``, ``"cuda:0"``."""
        return str(self.torch)

    @property
    def model(self) -> str:
        """What machine it is, as far as speed is concerned: ``"cpu"``, ``"NVIDIA H100 80GB HBM3"``."""
        return "cpu" if self.is_cpu else torch.cuda.get_device_name(self.torch)

    @property
    def is_cpu(self) -> bool:
        """Whether it shares its cores with everything else."""
        return self.torch.type == "cpu"

    @property
    def batch_tokens(self) -> tuple[int, int]:
        """The least and the most padded tokens of a batch."""
        return BATCH_TOKENS[self.torch.type]

    @property
    def cache_bytes(self) -> int:
        """Default bound of kept keys and values."""
        return CACHE_BYTES[self.torch.type]

    @property
    def longest_wait(self) -> float:
        """How many fixed parts of a forward a batch may wait for callers that were just answered."""
        return WAITS[self.torch.type]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Makes the device and its stream current for this thread."""
        if self.stream is None:
            yield
            return
        with torch.cuda.device(self.torch), torch.cuda.stream(self.stream):
            yield

    @contextmanager
    def completing(self) -> Iterator[None]:
        """The same around work of somebody else's, which is complete at its end, not only queued."""
        with self.entered():
            yield
            if self.stream is not None:
                self.stream.synchronize()

    def put(self, tensor: Tensor) -> Tensor:
        """``tensor`` on the device; the copy is queued on the stream, not waited for."""
        if self.is_cpu:
            return tensor
        # The allocator keeps the pinned source alive until the copy on this stream is done.
        return tensor.pin_memory().to(self.torch, non_blocking=True)

    def fetch(self, value: Any) -> Any:
        """``value`` with every tensor in it as an ordinary tensor in host memory of its own.

        Looks into lists, tuples, mappings and dataclasses. On a GPU all copies are queued before
        one wait. Call it outside of inference mode, so that the tensors can be used freely.
        """
        if self.stream is None:
            return _replace_tensors(value, _own)
        staged: list[tuple[Tensor, Tensor]] = []

        def stage(tensor: Tensor) -> Tensor:
            if tensor.device.type == "cpu":
                return _own(tensor)
            target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            target.copy_(tensor, non_blocking=True)
            staged.append((tensor, target))  # keeps the source until the copy is done
            return target

        fetched = _replace_tensors(value, stage)
        done = torch.cuda.Event()
        done.record(self.stream)
        done.synchronize()
        pinned = {id(target) for _, target in staged}
        # Pinned memory is scarce and results may be kept for long: hand out pageable copies.
        return _replace_tensors(fetched, lambda t: t.clone() if id(t) in pinned else t)

    def used_bytes(self) -> int:
        """Bytes torch has allocated on the device; 0 on the CPU, where it does not say."""
        return 0 if self.is_cpu else torch.cuda.memory_allocated(self.torch)

    def synchronize(self) -> None:
        """Waits until the device has done all it was given."""
        if not self.is_cpu:
            torch.cuda.synchronize(self.torch)

    def tidy(self) -> None:
        """For when nothing has run for a moment: after large batches the CPU's memory is free, but kept."""
        if self.is_cpu:
            memory.trim()

    def release(self) -> None:
        """Gives memory that is no longer used back to the device."""
        gc.collect()
        if self.is_cpu:
            return
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:
            if not is_beyond_repair(error):  # a broken context gives nothing back while the process lives
                raise


class Devices:
    """The devices of this machine. All models on the CPU share its turn."""

    def __init__(self, cpu_turn: Turn | None = None) -> None:
        self._cpu_turn = cpu_turn or Turn()

    @property
    def names(self) -> tuple[str, ...]:
        """``("cpu", "cuda:0", …)``."""
        return ("cpu", *self._cuda())

    def candidates(self, wanted: str) -> tuple[str, ...]:
        """Devices that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` allows: ``auto`` any GPU, else the CPU.

        Raises LoadFailed when there is none.
        """
        cuda = self._cuda()
        allowed = {"auto": cuda or ("cpu",), "cpu": ("cpu",), "cuda": cuda}.get(wanted)
        if allowed is None:
            allowed = tuple(name for name in cuda if name == wanted)
        if not allowed:
            raise LoadFailed(
                f"device {wanted!r} does not exist: torch {torch.__version__} sees {len(cuda)} CUDA devices; "
                'set device = "cpu" or "auto"'
            )
        return allowed

    def open(self, name: str) -> Device:
        """A device for one model, with a stream of its own where there are streams."""
        return Device(torch.device(name), self._cpu_turn)

    def free_bytes(self, device: str) -> int | None:
        """Bytes that can be allocated now; ``None`` where nobody says."""
        if device == "cpu":
            return memory.available_bytes()
        return torch.cuda.mem_get_info(torch.device(device))[0]

    def used_bytes(self, device: str) -> int:
        """Bytes that this process has on the device, what torch keeps for later included."""
        if device == "cpu":
            return memory.process_bytes()
        return torch.cuda.memory_reserved(torch.device(device))

    @staticmethod
    def _cuda() -> tuple[str, ...]:
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))


def choose_device(wanted: str, cpu_turn: Turn | None = None) -> Device:
    """The first of :meth:`Devices.candidates`. Raises LoadFailed."""
    devices = Devices(cpu_turn)
    return devices.open(devices.candidates(wanted)[0])


def choose_dtype(wanted: str, *, on_cpu: bool) -> torch.dtype | str:
    """What ``from_pretrained`` takes as ``dtype``: ``auto`` is float32 on a CPU, where half
    precision is slow, and what the checkpoint was saved in on a GPU."""
    if wanted == "auto":
        return torch.float32 if on_cpu else "auto"
    return DTYPES[wanted]


def dtype_name(dtype: torch.dtype) -> str:
    """``"float32"``."""
    return str(dtype).removeprefix("torch.")


def usable_cores() -> int:
    """Cores this process may use: its affinity, and its control group's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        if quota != "max":
            cores = min(cores, max(1, int(quota) // int(period)))
    except (OSError, ValueError):
        pass
    return cores


def set_cpu_threads() -> None:
    """Lets one operation use every core there is, and no more: oversubscription halves the speed."""
    torch.set_num_threads(usable_cores())


#: What plain runtime errors say: torch's CPU allocator, oneDNN, the CUDA driver and its libraries.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "could not create a memory object",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and any(text in said for text in _OUT_OF_MEMORY)


#: What CUDA calls faults after which every call of the process fails: its context is broken.
_BEYOND_REPAIR = (
    "illegal memory access",
    "illegal instruction",
    "illegal address",
    "misaligned address",
    "device-side assert",
    "unspecified launch failure",
    "launch timed out",
    "hardware stack error",
    "invalid program counter",
    "uncorrectable",  # ECC, NVLink
    "has fallen off the bus",
)


def is_beyond_repair(error: BaseException) -> bool:
    """Whether ``error`` says that the device's context is broken for this process."""
    said = str(error)
    return (
        isinstance(error, RuntimeError) and "CUDA" in said and any(fault in said for fault in _BEYOND_REPAIR)
    )


def device_lost(device: str) -> DeviceLost:
    """What callers are told then."""
    return DeviceLost(
        f"{device} failed in a way that only a new process can mend; the server drains and is started anew",
        metadata={"device": device},
        retry_after_s=10.0,
    )


def out_of_memory(device: str, rows: int, tokens: int) -> DeviceOutOfMemory:
    """What a caller is told when a forward of ``rows`` did not fit."""
    return DeviceOutOfMemory(
        f"{device} ran out of memory for {rows} row(s) of {tokens} tokens in all; send shorter rows, "
        "or ask for fewer positions or layers",
        metadata={"device": device},
    )


def _own(tensor: Tensor) -> Tensor:
    """``tensor`` without ties to the batch or the model: neither storage nor inference mode."""
    return tensor.detach().clone()


def _replace_tensors(value: Any, replace: Any) -> Any:
    match value:
        case Tensor():
            return replace(value)
        case list():
            return [_replace_tensors(v, replace) for v in cast("list[Any]", value)]
        case tuple():
            items = [_replace_tensors(v, replace) for v in cast("tuple[Any, ...]", value)]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        case dict():
            return {k: _replace_tensors(v, replace) for k, v in cast("dict[Any, Any]", value).items()}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            changes = {
                f.name: _replace_tensors(getattr(value, f.name), replace)
                for f in dataclasses.fields(value)
                if f.init
            }
            return dataclasses.replace(value, **changes)
        case _:
            return value
