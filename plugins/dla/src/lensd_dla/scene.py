"""What every split of a block works on: captures, weights and the frozen read-out of one batch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
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


def places_by_layer(
    scene: Scene, place: Int64[Tensor, "pos k place"]
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Layers named first in ``place``, each with the positions and ranks [n] at which it is named.

    Found on the host: one wait for the device, where looking for each layer there would take as many.
    """
    layers = place[..., 0].cpu()
    for number in range(int(layers.max()) + 1):
        pos, k = torch.nonzero(layers == number, as_tuple=True)
        if len(pos):
            yield number, scene.view.upload(pos), scene.view.upload(k)
