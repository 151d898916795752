"""Tables to the wire: columns become packed arrays, long tables become several parts."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lensd_proto.v1 import results_pb2
from lensd_server.engine.columns import Column, Kind, row_ends

_FILLERS: dict[Kind, Any] = {"doubles": 0.0, "integers": 0, "strings": "", "bools": False}


def encode(columns: Sequence[Column], part_bytes: int) -> Iterator[results_pb2.Table]:
    """Tables of at most ``part_bytes`` that together hold the rows of ``columns``, at least one.

    They have been checked (:mod:`lensd_server.engine.soundness`): every row fits.
    """
    rows = len(columns[0].values) if columns else 0
    room = part_bytes - sum(column.wire_overhead for column in columns)
    for start, stop in _cuts(columns, rows, room):
        yield results_pb2.Table(columns=[_part(column, start, stop) for column in columns])


def _cuts(columns: Sequence[Column], rows: int, room: int) -> Iterator[tuple[int, int]]:
    if sum(column.wire_bytes for column in columns) <= room:
        yield 0, rows
        return
    ends = row_ends(columns, rows)
    start = 0
    while True:
        before = int(ends[start - 1]) if start else 0
        # A row always goes, even where a limit was lowered after it was checked.
        stop = max(start + 1, int(np.searchsorted(ends, before + room, side="right")))
        if stop >= rows:
            yield start, rows
            return
        yield start, stop
        start = stop


def _part(column: Column, start: int, stop: int) -> results_pb2.Column:
    """Rows ``start`` to ``stop`` as a message, nulls counted within it."""
    values = column.values[start:stop]
    nulls = [row - start for row in column.nulls if start <= row < stop]
    if isinstance(values, np.ndarray):
        values = values.tolist()
    elif nulls:
        filler = _FILLERS[column.kind]
        values = [filler if value is None else value for value in values]
    message = results_pb2.Column(name=column.name, unit=column.unit, null_rows=nulls)
    packed: Any = getattr(message, column.kind)
    packed.SetInParent()  # a column without rows has its type all the same
    packed.values.extend(values)
    return message
