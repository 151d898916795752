"""What comes back from the device: every number of a row in one tensor, found by name.

One tensor, because a copy per quantity and row would cost more than the copying.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from lensd_api import Stack

#: Numbers in host memory.
Array = np.ndarray[Any, np.dtype[Any]]

_Numbers = TypeVar("_Numbers", Tensor, Array)


class Layout:
    """Where each quantity lies in the columns of a reading; shared by the rows of a batch."""

    __slots__ = ("_places",)

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._places: dict[str, tuple[int, int, tuple[int, ...]]] = {}
        start = 0
        for name, shape in shapes.items():
            width = prod(shape)
            self._places[name] = (start, start + width, shape)
            start += width

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def take(self, values: _Numbers, name: str) -> _Numbers:
        """Quantity ``name`` of ``values`` [pos, columns]: [pos, *shape]."""
        start, stop, shape = self._places[name]
        return values[:, start:stop].reshape(len(values), *shape)


class Reading(NamedTuple):
    """The numbers of one row for one part of the layers, in fp64; ``sources`` where asked."""

    layout: Layout
    values: Float64[Tensor, "pos column"]
    #: [pos, layer, head, src]
    sources: Tensor | None = None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.layout

    def get(self, name: str) -> Tensor:
        """Quantity ``name``: [pos, ...]."""
        return self.layout.take(self.values, name)


def pack(quantities: Mapping[str, Tensor], stack: Stack, sources: Sequence[Tensor] | None) -> list[Reading]:
    """Quantities [pos, ...] of a whole batch as one reading per row."""
    layout = Layout({name: tuple(tensor.shape[1:]) for name, tensor in quantities.items()})
    flat = torch.cat(
        [
            tensor.flatten(1).double() if tensor.ndim > 1 else tensor[:, None].double()
            for tensor in quantities.values()
        ],
        dim=1,
    )
    return [
        Reading(layout, flat[stack.slice_of(row)], None if sources is None else sources[row])
        for row in range(len(stack))
    ]
