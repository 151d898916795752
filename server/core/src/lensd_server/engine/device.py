"""Everything that depends on the device a model is on, in one place.

One :class:`Device` per resident model: its element type, its stream, copies both ways, and what
the device says about memory.
"""

import gc
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lensd_api import DeviceLost, LoadFailed
from lensd_server.engine import memory
from lensd_server.engine.batching.turn import Turn
from lensd_server.engine.device_faults import device_lost, is_beyond_repair, is_out_of_memory
from lensd_server.engine.host_copies import fetch_from_cpu, fetch_from_gpu

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

#: The least and the most padded tokens a batch may hold, whatever is measured at warm-up: with more,
#: everybody only waits for the slowest row, and what a batch occupies is bounded.
BATCH_TOKENS = {"cpu": (256, 2048), "cuda": (1024, 16384)}

#: Bytes of keys and values that may be kept of a model's rows, or laid out for one batch.
CACHE_BYTES = {"cpu": 2**29, "cuda": 2**32}

#: What libraries keep of a device's memory for themselves for each model: cuBLAS a workspace for each of the few
#: threads that compute on its stream.
LIBRARY_BYTES = {"cpu": 0, "cuda": 2**27}

#: How long callers that were just answered may be waited for, in fixed parts of a forward. Whoever comes back
#: in time spares one. On the CPU answering takes the very cores that a forward would run on, so a wait costs less.
WAITS = {"cpu": 3.0, "cuda": 1.0}

#: An analyzer that loops in Python holds the interpreter lock for this long at a time before another thread gets it;
#: at Python's default of 5 ms each of a request's few thread changes would cost that. A forward gives the lock up in
#: every operation, of which a GPU does hundreds in a millisecond's time: beside such a loop one of 31 ms took 2,900
#: with a millisecond, and 250 with this (the size of SmolLM2-135M, on an H200).
SWITCH_INTERVAL_S = {"cpu": 0.001, "cuda": 0.00005}


class Device:
    """Where a model lives.

    ``cpu_turn`` is shared by every model on the CPU; see :mod:`lensd_server.engine.batching.turn`. On a
    GPU each model has a turn of its own: its forwards and what else is computed for its callers alternate.
    """

    def __init__(
        self, device: torch.device, cpu_turn: Turn | None = None, lasting: "Lasting | None" = None
    ) -> None:
        self.torch = device
        self._lasting = lasting or Lasting()
        self.turn = cpu_turn if cpu_turn is not None and device.type == "cpu" else Turn()
        #: Called when something beside a forward has broken the device's context.
        self.when_lost: Callable[[DeviceLost], None] = lambda _: None

    @cached_property
    def stream(self) -> "torch.cuda.Stream | None":
        """One of its own lets two models share a GPU without waiting for each other."""
        return None if self.is_cpu else self._lasting.take_stream(self.torch)

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
    def library_bytes(self) -> int:
        """What libraries keep for themselves beside a model's own tensors."""
        return LIBRARY_BYTES[self.torch.type]

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
        """The same around work of somebody else's, which is complete at its end, not only queued.

        Raises DeviceLost when it has broken the device's context."""
        try:
            with self.entered():
                yield
                if self.stream is not None:
                    self.stream.synchronize()
        except BaseException as error:
            if not self.is_lost(error):
                raise
            lost = device_lost(self.name)
            self.when_lost(lost)
            raise lost from error

    def is_lost(self, error: BaseException) -> bool:
        """Whether ``error`` has broken the device's context for this process; it is kept then.

        Libraries give such a fault names of their own: what the next wait says is what counts."""
        if self.is_cpu or not isinstance(error, RuntimeError) or is_out_of_memory(error):
            lost = is_beyond_repair(error)
        else:
            lost = is_beyond_repair(error) or self._is_broken()
        if lost:
            self._lasting.keep(error)
        return lost

    def _is_broken(self) -> bool:
        try:
            self.synchronize()
        except RuntimeError as error:
            self._lasting.keep(error)
            return True
        return False

    def put(self, tensor: Tensor) -> Tensor:
        """``tensor`` on the device; the copy is queued on the stream, not waited for."""
        if self.is_cpu:
            return tensor
        # The allocator keeps the pinned source alive until the copy on this stream is done.
        return tensor.pin_memory().to(self.torch, non_blocking=True)

    def fetch(self, value: Any) -> Any:
        """``value`` with every tensor in it as an ordinary tensor in host memory of its own.

        Looks into lists, tuples, mappings and dataclasses. Call it with the device entered, and outside of
        inference mode, so that the tensors can be used freely.
        """
        return fetch_from_cpu(value) if self.stream is None else fetch_from_gpu(value)

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

    def leave(self) -> None:
        """The model is gone: its memory and its stream are for others."""
        self.release()
        if (stream := self.__dict__.pop("stream", None)) is not None:
            self._lasting.give_back(stream)

    def release(self) -> None:
        """Gives memory that is no longer used back to the device."""
        gc.collect()
        if self.is_cpu:
            return
        try:
            torch.cuda.empty_cache()
        except RuntimeError as error:
            if not self.is_lost(error):  # a broken context gives nothing back while the process lives
                raise


class Lasting:
    """What outlives the models of a process: streams to use again, and faults that must never be freed."""

    def __init__(self) -> None:
        # cuBLAS keeps 32 MiB for each stream that it was ever used on.
        self._streams: list[torch.cuda.Stream] = []
        self._faults: list[BaseException] = []
        self._lock = threading.Lock()

    def take_stream(self, device: torch.device) -> "torch.cuda.Stream":
        """One that no model uses."""
        with self._lock:
            free = next((stream for stream in self._streams if stream.device == device), None)
            if free is not None:
                self._streams.remove(free)
                return free
        return torch.cuda.Stream(device)

    def give_back(self, stream: "torch.cuda.Stream") -> None:
        """For the next model."""
        with self._lock:
            self._streams.append(stream)

    def keep(self, fault: BaseException) -> None:
        """Keeps a fault that is beyond repair, the frames of its traceback and all they refer to.

        Pinned memory cannot be freed on a broken context: trying ends the process before it has told anybody.
        """
        with self._lock:
            if not any(known is fault for known in self._faults):
                self._faults.append(fault)


class Devices:
    """The devices of this machine. All models on the CPU share its turn."""

    def __init__(self, cpu_turn: Turn | None = None) -> None:
        self._cpu_turn, self._lasting = cpu_turn or Turn(), Lasting()
        _prepare_cuda()

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
        return Device(torch.device(name), self._cpu_turn, self._lasting)

    def free_bytes(self, device: str) -> int | None:
        """Bytes that can be allocated now; ``None`` where nobody says."""
        if device == "cpu":
            return memory.available_bytes()
        place = torch.device(device)
        # What torch keeps for later it gives out again, or back to the device where that is needed.
        kept = torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)
        return torch.cuda.mem_get_info(place)[0] + kept

    def used_bytes(self, device: str) -> int:
        """Bytes that this process has on the device, what torch keeps for later included."""
        if device == "cpu":
            return memory.process_bytes()
        return torch.cuda.memory_reserved(torch.device(device))

    @staticmethod
    def _cuda() -> tuple[str, ...]:
        return tuple(f"cuda:{index}" for index in range(torch.cuda.device_count()))


@cache
def _prepare_cuda() -> None:
    """Settings of the process, before anything is on a GPU."""
    # cuDNN's attention makes a plan for each new shape in each thread, and keeps them all: 47 ms each where the
    # others, which need none, take 0.05 (bfloat16 on an H200).
    torch.backends.cuda.enable_cudnn_sdp(False)
    # float32 means float32, whatever the environment says; sums of float16 must not overflow on the way.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False


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


def switch_interval_s() -> float:
    """What ``sys.setswitchinterval`` is to be on this machine."""
    return SWITCH_INTERVAL_S["cuda" if torch.cuda.device_count() else "cpu"]


def set_cpu_threads() -> None:
    """Lets one operation use every core there is, and no more: oversubscription halves the speed."""
    torch.set_num_threads(usable_cores())
