"""From segments to columns. Column by column: a Python object per row would cost more than the rows."""

from collections.abc import Sequence
from itertools import chain, compress
from typing import Any

import numpy as np
from jaxtyping import Float64

from lensd_dla.reading import Array
from lensd_dla.rows import Numbers, Segment

#: Lists, or arrays where a column is computed as one.
Columns = dict[str, Any]


def contribution_columns(
    segments: Sequence[Segment],
    positions: tuple[int, ...],
    *,
    with_source: bool = False,
    with_effects: bool = False,
) -> Columns:
    """Columns of ``contributions``: the rows of one position after those of another."""
    values = all_values(segments)
    total = np.abs(values).sum(1, keepdims=True)
    share = values / np.where(total > 0, total, 1.0)
    width = values.shape[1]
    columns: Columns = {
        "position": np.repeat(positions, width),
        "layer": _repeated([s.layer for s in segments], len(positions)),
        "kind": [*chain.from_iterable([s.kind] * s.values.shape[1] for s in segments)] * len(positions),
        "index": _repeated([s.index for s in segments], len(positions)),
        "value": values.ravel(),
        "share": share.ravel(),
    }
    if with_source:
        columns["source"] = _repeated([_or_none(s, s.source) for s in segments], len(positions))
    if with_effects:
        columns["direct_effect"] = _repeated([_or_none(s, s.effects) for s in segments], len(positions))
    layers = columns["layer"]
    # A short row has fewer sources than were asked for: their places are -1, their values zero.
    if with_source and -1 in layers:
        kept = [layer != -1 for layer in layers]
        columns = {name: list(compress(_listed(column), kept)) for name, column in columns.items()}
    return columns


def all_values(segments: Sequence[Segment]) -> Float64[Array, "pos row"]:
    """Values of all rows, position by position."""
    return np.concatenate([s.values for s in segments], 1)


def nmae(segments: Sequence[Segment], position: int) -> float | None:
    """mean |contribution - direct effect| / mean |direct effect| over the components at ``position``.

    How far the frozen-norm contributions, which add up, are from what removing each component
    alone does, which does not. ``None`` when nothing has an effect.
    """
    pairs = [(s.values[position], s.effects[position]) for s in segments if s.effects is not None]
    values, effects = np.concatenate([v for v, _ in pairs]), np.concatenate([e for _, e in pairs])
    size = np.abs(effects).mean()
    return float(np.abs(values - effects).mean() / size) if size > 0 else None


def _or_none(segment: Segment, numbers: Array | None) -> Numbers:
    return [None] * segment.values.shape[1] if numbers is None else numbers


def _repeated(parts: Sequence[Numbers], count: int) -> list[Any]:
    """One column for ``count`` positions from numbers that are shared, or given for each."""
    if not any(isinstance(numbers, np.ndarray) for numbers in parts):
        return [*chain.from_iterable(parts)] * count
    listed: list[list[Any]] = [
        numbers.tolist() if isinstance(numbers, np.ndarray) else [numbers] * count for numbers in parts
    ]
    return [*chain.from_iterable(numbers[position] for position in range(count) for numbers in listed)]


def _listed(column: Any) -> Sequence[Any]:
    return column.tolist() if isinstance(column, np.ndarray) else column
