"""What a batch looks like: padded inputs, groups of rows that are captured alike, what each row gets. Pure."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensd_api import Activations, Site, Stack
from lensd_server.engine.anatomy.capture import GatherGroup


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """A row that has passed every check; ``positions`` are non-negative."""

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    attention_mask: tuple[int, ...] | None = None
    position_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Inputs:
    """Right-padded inputs of one forward, on the CPU.

    ``input_ids`` and ``attention_mask`` are [batch, pos]; ``position_ids`` likewise, or ``None``
    when every row counts from 0 and the model can do that by itself.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor | None
    lengths: tuple[int, ...]


def pad(rows: Sequence[PreparedRow]) -> Inputs:
    """One tensor of each kind for ``rows``. Padding sits on the right, where a causal mask hides it."""
    lengths = tuple(len(row.tokens) for row in rows)
    width = max(lengths)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        input_ids[i, : lengths[i]] = torch.tensor(row.tokens)
        mask[i, : lengths[i]] = 1 if row.attention_mask is None else torch.tensor(row.attention_mask)
    # A model left to itself may count positions from the mask (OPT): say them whenever a row is special.
    plain = all(row.attention_mask is None and row.position_ids is None for row in rows)
    position_ids = None
    if not plain:
        position_ids = torch.arange(width).repeat(len(rows), 1)
        for i, row in enumerate(rows):
            if row.position_ids is not None:
                position_ids[i, : lengths[i]] = torch.tensor(row.position_ids)
    return Inputs(input_ids, mask, position_ids, lengths)


def group_rows(
    rows: Sequence[PreparedRow],
    keys: Sequence[tuple[frozenset[Site], tuple[int, ...], Hashable]],
    lanes: Sequence[Sequence[int]],
) -> list[tuple[GatherGroup, tuple[int, ...]]]:
    """Groups of rows whose keys (sites, layers, what to make of them) are equal, in order of first row.

    ``lanes`` say which rows each sequence of the forward answers; with each group come the indices of
    its rows.
    """
    lane_of = {i: number for number, lane in enumerate(lanes) for i in lane}
    members: dict[tuple[frozenset[Site], tuple[int, ...], Hashable], list[int]] = {}
    for i, key in enumerate(keys):
        members.setdefault(key, []).append(i)
    return [
        (
            GatherGroup(
                sites=sites,
                layers=layers,
                rows=tuple(lane_of[i] for i in own),
                positions=tuple(rows[i].positions for i in own),
            ),
            tuple(own),
        )
        for (sites, layers, _), own in members.items()
    ]


def split_stack(stack: Stack) -> list[Activations]:
    """The activations of each row of ``stack``; views of it."""
    return [
        Activations(
            {site: _of_row(stack, site, values, row) for site, values in stack.values.items()},
            stack.positions[row],
            stack.layers,
        )
        for row in range(len(stack))
    ]


def _of_row(stack: Stack, site: Site, values: Tensor, row: int) -> Tensor:
    if site is Site.VALUES:
        return values[stack.src_slice_of(row)]
    own = values[stack.slice_of(row)]
    return own[..., : len(stack.tokens[row])] if site is Site.ATTENTION else own


def captured_bytes(values: "dict[Site, Any]") -> int:
    """Memory that the captures of a group occupy."""
    return sum(tensor.nbytes for tensor in values.values())
