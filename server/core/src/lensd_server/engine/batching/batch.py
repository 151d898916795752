"""What a batch looks like: padded inputs, groups of what is captured alike, what each row gets. Pure."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lensd_api import Activations, Site, Stack
from lensd_server.engine.anatomy.capture import GatherGroup, count_positions
from lensd_server.engine.anatomy.past import LaneCache, Past


@dataclass(frozen=True, slots=True)
class PreparedRow:
    """A row that has passed every check; ``positions`` are non-negative."""

    tokens: tuple[int, ...]
    positions: tuple[int, ...]
    attention_mask: tuple[int, ...] | None = None
    position_ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """Tokens ``start`` to ``stop`` of a row, which are read on from ``past``, all that came before."""

    row: PreparedRow
    start: int
    stop: int
    past: Past | None = None

    def __len__(self) -> int:
        return self.stop - self.start

    @classmethod
    def whole(cls, row: PreparedRow) -> "Step":
        """The row at once."""
        return cls(row, 0, len(row.tokens))

    @property
    def is_last(self) -> bool:
        """Whether the row has been read after it."""
        return self.stop == len(self.row.tokens)

    @property
    def asked(self) -> tuple[int, ...]:
        """Which of the row's asked positions lie in it, as indices into those."""
        return tuple(i for i, p in enumerate(self.row.positions) if self.start <= p < self.stop)

    def relative(self, asked: Sequence[int]) -> tuple[int, ...]:
        """Where the asked positions are, counted from the step's first token."""
        return tuple(self.row.positions[i] - self.start for i in asked)


@dataclass(frozen=True, slots=True)
class Inputs:
    """Right-padded inputs of one forward, on the CPU.

    ``input_ids`` is [batch, pos], ``attention_mask`` [batch, past + pos]; ``position_ids`` is like the
    first, or ``None`` when every row counts from 0 and the model can do that by itself.
    """

    input_ids: Tensor
    attention_mask: Tensor
    position_ids: Tensor | None
    lengths: tuple[int, ...]


def pad(steps: Sequence[Step], cache: LaneCache | None = None) -> Inputs:
    """One tensor of each kind for ``steps``. Padding sits on the right, where a causal mask hides it.

    ``cache`` is that of the same steps, where one of them has a past.
    """
    lengths = tuple(map(len, steps))
    width, offset = max(lengths), 0 if cache is None else cache.offset
    tokens, masks = list[Sequence[int]](), list[Sequence[int]]()
    for step, length in zip(steps, lengths, strict=True):
        row, after = step.row, (0,) * (width - length)
        seen = (1,) * step.stop if row.attention_mask is None else row.attention_mask[: step.stop]
        tokens.append((*row.tokens[step.start : step.stop], *after))
        masks.append((*(0,) * (offset - step.start), *seen, *after))
    # One tensor of all rows: one for each took longer than the forward of a small model.
    input_ids, mask = torch.tensor(tokens, dtype=torch.long), torch.tensor(masks, dtype=torch.long)
    # A model left to itself may count positions from the mask (OPT): say them whenever a row is special.
    plain = all(step.row.attention_mask is None and step.row.position_ids is None for step in steps)
    position_ids = None
    if not plain:
        position_ids = count_positions([step.start for step in steps], lengths, width)
        for i, step in enumerate(steps):
            if step.row.position_ids is not None:
                own = step.row.position_ids[step.start : step.stop]
                position_ids[i] = own[-1]
                position_ids[i, : lengths[i]] = torch.tensor(own)
    return Inputs(input_ids, mask, position_ids, lengths)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is captured of one lane of a forward: ``key`` is sites, layers and whatever else must be equal
    to stand in one group; ``positions`` count from the lane's first token."""

    lane: int
    key: tuple[frozenset[Site], tuple[int, ...], Hashable]
    positions: tuple[int, ...]


def group_wanted(wanted: Sequence[Wanted]) -> list[tuple[GatherGroup, tuple[int, ...]]]:
    """Groups of equal keys, in order of their first member, each with the indices of its members."""
    members: dict[tuple[frozenset[Site], tuple[int, ...], Hashable], list[int]] = {}
    for i, one in enumerate(wanted):
        members.setdefault(one.key, []).append(i)
    return [
        (
            GatherGroup(
                sites=sites,
                layers=layers,
                rows=tuple(wanted[i].lane for i in own),
                positions=tuple(wanted[i].positions for i in own),
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
