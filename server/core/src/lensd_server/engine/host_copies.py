"""Brings tensors, wherever they are within a value, into host memory of their own."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

#: Most bytes that are copied at once by way of pinned memory, which torch keeps for good. Larger copies are bound
#: by their own size.
PINNED_BYTES = 2**26


def fetch_from_cpu(value: Any) -> Any:
    """``value`` with every tensor in it without ties to the batch or the model: neither storage nor inference mode."""
    return replace_tensors(value, _own)


def fetch_from_gpu(value: Any) -> Any:
    """The same of tensors on a GPU: all copies are queued on the current stream before one wait."""
    found: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    def stage(tensor: Tensor) -> Tensor:
        if tensor.nbytes > PINNED_BYTES:
            return tensor.cpu()
        target = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return target.copy_(tensor, non_blocking=True)

    replace_tensors(value, note)
    on_gpu = [tensor.detach().resolve_conj().resolve_neg() for tensor in found if tensor.is_cuda]
    staged = copy_together(on_gpu, stage)
    torch.cuda.current_stream().synchronize()
    # Results may be kept for long, and pinned memory is scarce: hand out pageable copies.
    own = iter([part if _stands_alone(part) else part.clone() for part in staged])
    return replace_tensors(value, lambda tensor: next(own) if tensor.is_cuda else _own(tensor))


def _stands_alone(tensor: Tensor) -> bool:
    return not tensor.is_pinned() and tensor.untyped_storage().nbytes() == tensor.nbytes


def copy_together(tensors: Sequence[Tensor], copy: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """What ``copy`` makes of each of ``tensors``; those that lie in one storage are copied as one.

    The rows of a batch are mostly parts of one tensor, and one large copy is worth hundreds of small ones. None of
    ``tensors`` may be conjugated or negated lazily.
    """
    storages: dict[tuple[int, torch.dtype], list[int]] = {}
    for number, tensor in enumerate(tensors):
        storages.setdefault((tensor.untyped_storage().data_ptr(), tensor.dtype), []).append(number)
    copied: dict[int, Tensor] = {}
    for members in storages.values():
        parts = [tensors[number] for number in members if tensors[number].numel()]
        low = min((part.storage_offset() for part in parts), default=0)
        length = max((_end(part) for part in parts), default=0) - low
        if len(parts) > 1 and length <= 2 * sum(part.numel() for part in parts):
            whole = copy(parts[0].as_strided((length,), (1,), low))
            for number in members:
                part = tensors[number]
                if part.numel():
                    copied[number] = whole.as_strided(part.shape, part.stride(), part.storage_offset() - low)
    return [copied[number] if number in copied else copy(tensor) for number, tensor in enumerate(tensors)]


def _end(tensor: Tensor) -> int:
    """One beyond the last number of ``tensor`` in its storage."""
    reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return int(tensor.storage_offset() + reach + 1)


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def replace_tensors(value: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with ``replace`` of each tensor in it, in order. Looks into lists, tuples, mappings and dataclasses."""
    match value:
        case Tensor():
            return replace(value)
        case list():
            return [replace_tensors(v, replace) for v in cast("list[Any]", value)]
        case tuple():
            items = [replace_tensors(v, replace) for v in cast("tuple[Any, ...]", value)]
            return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
        case dict():
            return {k: replace_tensors(v, replace) for k, v in cast("dict[Any, Any]", value).items()}
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            changes = {
                f.name: replace_tensors(getattr(value, f.name), replace)
                for f in dataclasses.fields(value)
                if f.init
            }
            return dataclasses.replace(value, **changes)
        case _:
            return value
