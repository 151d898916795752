"""Dense arrays to and from the wire: little-endian bytes with dtype, shape and named axes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from math import prod
from typing import TYPE_CHECKING

import numpy as np

from lensd_api.errors import InvalidTensor
from lensd_api.results import Tensor as TensorResult
from lensd_proto.v1 import results_pb2
from lensd_server.engine.dense import MAX_RANK, Dense

if TYPE_CHECKING:
    import torch

#: Tensors above this travel as chunks of this size.
CHUNK_BYTES = 512 * 1024
_MAX_ELEMENTS = 2**40

_DTYPES: dict[int, tuple[str, int]] = {
    results_pb2.DATA_TYPE_FLOAT16: ("float16", 2),
    results_pb2.DATA_TYPE_BFLOAT16: ("bfloat16", 2),
    results_pb2.DATA_TYPE_FLOAT32: ("float32", 4),
    results_pb2.DATA_TYPE_FLOAT64: ("float64", 8),
    results_pb2.DATA_TYPE_INT8: ("int8", 1),
    results_pb2.DATA_TYPE_INT16: ("int16", 2),
    results_pb2.DATA_TYPE_INT32: ("int32", 4),
    results_pb2.DATA_TYPE_INT64: ("int64", 8),
    results_pb2.DATA_TYPE_UINT8: ("uint8", 1),
    results_pb2.DATA_TYPE_BOOL: ("bool", 1),
}
_NUMBERS = {name: number for number, (name, _) in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class EncodedTensor:
    """A tensor ready to be sent: its description without elements, and all their bytes."""

    header: results_pb2.Tensor
    data: memoryview

    def chunks(self, size: int) -> Iterator[tuple[int, bytes]]:
        """Offsets and bytes of consecutive chunks of ``size`` bytes."""
        for offset in range(0, len(self.data), size):
            yield offset, bytes(self.data[offset : offset + size])

    def digest(self) -> str:
        """SHA-256 of all the bytes, in hexadecimal."""
        return sha256(self.data).hexdigest()


def encode(result: TensorResult, dense: Dense) -> EncodedTensor:
    """Describes ``result``, whose elements are ``dense``, and views its bytes, copying only what is not contiguous.

    It has been checked (:mod:`lensd_server.engine.soundness`).
    """
    array, dtype = dense
    header = results_pb2.Tensor(
        dtype=_NUMBERS[dtype],  # pyright: ignore[reportArgumentType]
        shape=array.shape,
        axes=_axes(result),
        byte_length=array.nbytes,
        unit=result.unit,
    )
    little = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    # A zero-length view cannot be cast.
    return EncodedTensor(header, little.reshape(-1).view(np.uint8).data if little.size else memoryview(b""))


def decode(name: str, tensor: results_pb2.Tensor) -> "torch.Tensor":
    """A tensor of a request, in memory of its own. Raises InvalidTensor.

    The bytes are counted against the shape before anything is allocated.
    """
    import torch

    if tensor.dtype not in _DTYPES:
        raise _refuse(name, "dtype", f"dtype {tensor.dtype} is not one of DataType")
    dtype, size = _DTYPES[tensor.dtype]
    shape = tuple(tensor.shape)
    if len(shape) > MAX_RANK:
        raise _refuse(name, "shape", f"{len(shape)} dimensions, at most {MAX_RANK} are allowed")
    if tensor.axes and len(tensor.axes) != len(shape):
        raise _refuse(name, "axes", f"{len(tensor.axes)} axes for {len(shape)} dimensions")
    # Python's integers do not overflow, the library's below would.
    if any(length > _MAX_ELEMENTS for length in shape) or prod(shape) > _MAX_ELEMENTS:
        raise _refuse(name, "shape", f"shape {list(shape)} is beyond any request")
    expected = prod(shape) * size
    if len(tensor.data) != expected:
        raise _refuse(
            name,
            "data",
            f"{len(tensor.data)} bytes, but shape {list(shape)} of {dtype} needs {expected}",
        )
    if tensor.byte_length not in (0, expected):
        raise _refuse(name, "byte_length", f"{tensor.byte_length}, but the tensor has {expected} bytes")
    if dtype == "bool" and tensor.data.strip(b"\x00\x01"):
        raise _refuse(name, "data", "a bool must be the byte 0 or 1")
    if expected == 0:
        return torch.empty(shape, dtype=getattr(torch, dtype))
    return torch.frombuffer(bytearray(tensor.data), dtype=getattr(torch, dtype)).reshape(shape)


def decode_all(tensors: Mapping[str, results_pb2.Tensor]) -> "dict[str, torch.Tensor]":
    """Every tensor of a request by name."""
    return {name: decode(name, tensors[name]) for name in tensors}


def _refuse(name: str, part: str, description: str) -> InvalidTensor:
    from lensd_api.errors import FieldViolation

    field = f"tensors[{name!r}].{part}"
    return InvalidTensor(f"{field}: {description}", violations=[FieldViolation(field, description)])


def _axes(result: TensorResult) -> list[results_pb2.Axis]:
    return [
        results_pb2.Axis(name=name, labels=[str(label) for label in result.labels.get(name, ())])
        for name in result.axes
    ]
