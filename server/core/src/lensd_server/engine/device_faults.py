"""What errors say about a device: that its memory ran out, or that nothing can be computed there any more."""

import torch

from lensd_api import DeviceLost, DeviceOutOfMemory

#: What plain runtime errors say: torch's CPU allocator, oneDNN, the CUDA driver and its libraries.
_OUT_OF_MEMORY = (
    "DefaultCPUAllocator",
    "could not create a memory object",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_NOT_INITIALIZED",  # a handle that found no room for its workspace
    "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",  # cuDNN 9
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
