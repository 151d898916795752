"""Rows that ask for the same captures, the positions they ask for, and what was kept of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from lensd_api import Site
from lensd_server.engine.anatomy.experts import RoutedExperts
from lensd_server.engine.anatomy.sites import UNLAYERED
from lensd_server.engine.anatomy.structure import Structure
from lensd_server.engine.upload import upload


@dataclass(frozen=True, slots=True)
class GatherGroup:
    """Rows of a batch that ask for the same sites at the same layers.

    ``positions`` has one tuple of non-negative positions for each of ``rows``.
    """

    sites: frozenset[Site]
    layers: tuple[int, ...]
    rows: tuple[int, ...]
    positions: tuple[tuple[int, ...], ...]


class Gather:
    """The index of a group into a batch's [B * T, width] rows, and the tensors kept so far."""

    def __init__(self, group: GatherGroup, width: int, lengths: Sequence[int], device: torch.device) -> None:
        self.group = group
        self.lengths = tuple(lengths[row] for row in group.rows)
        pairs = [(r, p) for r, asked in zip(group.rows, group.positions, strict=True) for p in asked]
        self.flat = [row * width + position for row, position in pairs]
        self.index = upload(self.flat, device, torch.long)
        #: The same without the row, for what the batch shares: [T, width] position embeddings.
        self.position = upload([position for _, position in pairs], device, torch.long)
        #: Per site: a tensor per layer of the group, or one.
        self.kept: dict[Site, list[Tensor]] = {
            site: [self.index] * (1 if site in UNLAYERED else len(group.layers)) for site in group.sites
        }
        #: Per layer of the group: what its routed experts were given at the asked positions.
        self.routed: list[tuple[Tensor, Tensor, Tensor]] = [(self.index, self.index, self.index)] * len(
            group.layers
        )

    @property
    def wants_logits(self) -> bool:
        """Whether the output head has to run at this group's positions."""
        return bool(self.group.sites & {Site.LOGITS, Site.RAW_LOGITS})

    @property
    def wants_experts(self) -> bool:
        """Whether routed experts are asked for."""
        return bool(self.group.sites & {Site.EXPERT_WRITES, Site.EXPERT_IDS})

    @property
    def wants_attention(self) -> bool:
        """Whether the attention recorder has to run."""
        return bool(self.group.sites & {Site.ATTENTION, Site.VALUES})

    def row_positions(self) -> list[Tensor]:
        """Per row: its asked positions, on the device."""
        return list(self.position.split([len(asked) for asked in self.group.positions]))

    def captures(self, structure: Structure) -> dict[Site, Tensor]:
        """Everything asked for, stacked as :class:`lensd_api.Stack` documents."""
        return {site: self._stacked(site, structure) for site in self.group.sites}

    def _stacked(self, site: Site, structure: Structure) -> Tensor:
        layers = [structure.layers[i] for i in self.group.layers]
        match site:
            case Site.POS_EMBED if structure.embeddings.position is None:
                skeleton = structure.skeleton
                shape = (len(self.flat), skeleton.d_model)
                return torch.zeros(shape, dtype=skeleton.dtype, device=skeleton.device)
            case Site.ATTN_WRITE:
                return self._scaled(site, [part.multiplier for layer in layers if (part := layer.attention)])
            case Site.MLP_WRITE:
                return self._scaled(site, [part.multiplier for layer in layers if (part := layer.mlp)])
            case Site.HEADS:
                return torch.stack(self.kept[site], dim=1).unflatten(-1, (structure.skeleton.n_heads, -1))
            case Site.EXPERT_IDS:
                return torch.stack([ids for _, ids, _ in self.routed], dim=1)
            case Site.EXPERT_WRITES:
                parts = [
                    (part, layer.mlp.multiplier) for layer in layers if (part := layer.experts) and layer.mlp
                ]
                return torch.stack([self._slots(slot, *part) for slot, part in enumerate(parts)], dim=1)
            case _ if site in UNLAYERED:
                return self.kept[site][0]
            case _:
                return torch.stack(self.kept[site], dim=1)

    def _scaled(self, site: Site, multipliers: Sequence[float]) -> Tensor:
        stacked = torch.stack(self.kept[site], dim=1)
        if all(multiplier == 1.0 for multiplier in multipliers):
            return stacked
        return stacked * upload(multipliers, stacked.device, stacked.dtype)[None, :, None]

    def _slots(self, slot: int, experts: RoutedExperts, multiplier: float) -> Tensor:
        writes = experts.slot_writes(*self.routed[slot])
        return writes if multiplier == 1.0 else writes * multiplier


def padded_sources(rows: Sequence[Tensor], length: int) -> Tensor:
    """``rows`` of [pos, head, src] one after another, each filled with zeros to ``length`` sources."""
    return torch.cat([pad(row, (0, length - row.shape[-1])) for row in rows])
