"""What every split of a block works on: captures, weights and the frozen read-out of one batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lensd_api import ModelView, Site, Stack
from lensd_dla.pullback import FrozenRead, widen

#: Named numbers of a batch, each [pos, ...]; ``name:effect`` is the direct effect beside ``name``.
Quantities = dict[str, Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Scene:
    """One batch of rows that are split alike."""

    stack: Stack
    view: ModelView
    read: FrozenRead
    top_k: int
    direct_effect: bool

    def project(self, site: Site) -> Float[Tensor, "pos layer"]:
        """Contribution of the whole writes captured at ``site``."""
        writes = widen(self.stack.values[site])
        return torch.einsum("pld,pd->pl", writes, self.read.pulled)


def stack_layers(name: str, layers: Sequence[Tensor | None]) -> Quantities:
    """``name`` [pos, layer], zero where a layer has none; nothing when no layer has."""
    present = [layer for layer in layers if layer is not None]
    if not present:
        return {}
    zero = torch.zeros_like(present[0])
    return {name: torch.stack([zero if layer is None else layer for layer in layers], 1)}
