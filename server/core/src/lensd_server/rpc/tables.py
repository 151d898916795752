"""Tables to the wire: columns become packed arrays, long tables become several parts."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from lensd_api.results import Table as TableResult
from lensd_proto.v1 import results_pb2
from lensd_server.rpc.values import InvalidValue

Kind = Literal["doubles", "integers", "strings", "bools"]

_MESSAGES = {
    "doubles": results_pb2.DoubleColumn,
    "integers": results_pb2.IntegerColumn,
    "strings": results_pb2.StringColumn,
    "bools": results_pb2.BoolColumn,
}
#: Most bytes one value takes; strings are counted.
_WIDTHS = {"doubles": 8, "integers": 10, "bools": 1}
#: Tag and length before a string, and the largest entry of null_rows.
_STRING_OVERHEAD = 6
_NULL_BYTES = 5
_FILLERS: dict[Kind, Any] = {"doubles": 0.0, "integers": 0, "strings": "", "bools": False}


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    unit: str
    kind: Kind
    values: list[Any]
    nulls: list[int]

    def part(self, start: int, stop: int) -> results_pb2.Column:
        """Rows ``start`` to ``stop`` as a message, nulls counted within it."""
        column = results_pb2.Column(
            name=self.name,
            unit=self.unit,
            null_rows=[row - start for row in self.nulls if start <= row < stop],
        )
        getattr(column, self.kind).CopyFrom(_MESSAGES[self.kind](values=self.values[start:stop]))
        return column

    def widths(self) -> "np.ndarray[Any, Any] | int":
        """Upper bound of the bytes each row takes: one number, or one a row."""
        nulls = _NULL_BYTES if self.nulls else 0
        if self.kind != "strings":
            return _WIDTHS[self.kind] + nulls
        sizes = np.fromiter((len(v.encode()) for v in self.values), dtype=np.int64, count=len(self.values))
        return sizes + _STRING_OVERHEAD + nulls


def encode(result: TableResult, part_bytes: int) -> Iterator[results_pb2.Table]:
    """Tables of at most ``part_bytes`` that together hold the rows of ``result``, at least one.

    Raises InvalidValue when the analyzer returned something the wire cannot carry.
    """
    columns = [_column(result, name, values) for name, values in result.columns.items()]
    lengths = {column.name: len(column.values) for column in columns}
    if len(set(lengths.values())) > 1:
        raise InvalidValue(f"table {result.name}: columns differ in length: {lengths}")
    if unknown := set(result.units) - set(result.columns):
        raise InvalidValue(f"table {result.name}: units for {sorted(unknown)}, which are not columns of it")
    rows = next(iter(lengths.values()), 0)
    room = part_bytes - sum(len(c.name.encode()) + len(c.unit.encode()) + 40 for c in columns)
    for start, stop in _cuts(result.name, columns, rows, room):
        yield results_pb2.Table(columns=[column.part(start, stop) for column in columns])


def _cuts(table: str, columns: list[_Column], rows: int, room: int) -> Iterator[tuple[int, int]]:
    ends = np.cumsum(np.zeros(rows, dtype=np.int64) + sum(column.widths() for column in columns))
    start = 0
    while True:
        before = int(ends[start - 1]) if start else 0
        stop = int(np.searchsorted(ends, before + room, side="right"))
        if stop >= rows:
            yield start, rows
            return
        if stop == start:
            raise InvalidValue(f"table {table}: row {start} alone needs {int(ends[start]) - before} bytes")
        yield start, stop
        start = stop


def _column(result: TableResult, name: str, raw: Sequence[Any]) -> _Column:
    label = f"table {result.name}, column {name}"
    values = _as_list(raw, label)
    kinds = set(map(type, values))
    nulls: list[int] = []
    if type(None) in kinds:
        nulls = [row for row, value in enumerate(values) if value is None]
        kinds.discard(type(None))
    kind = _kind(kinds, label)
    if nulls:
        filler = _FILLERS[kind]
        values = [filler if value is None else value for value in values]
    return _Column(name, result.units.get(name, ""), kind, values, nulls)


def _as_list(raw: Any, label: str) -> list[Any]:
    if hasattr(raw, "detach"):
        raw = raw.detach().cpu()
    if isinstance(raw, str | bytes | Mapping):
        raise InvalidValue(f"{label}: a {type(cast('object', raw)).__name__} is not a sequence of values")
    # Arrays and tensors convert in C; a list may still hold NumPy's own scalars.
    values = raw.tolist() if hasattr(raw, "tolist") else list(raw)
    if not isinstance(values, list):
        raise InvalidValue(f"{label}: a single number, not a sequence of values")
    return [v.item() if isinstance(v, np.generic) else v for v in values] if _has_scalars(values) else values


def _has_scalars(values: list[Any]) -> bool:
    return any(issubclass(kind, np.generic) for kind in set(map(type, values)))


def _kind(kinds: set[type], label: str) -> Kind:
    if all(issubclass(kind, bool) for kind in kinds) and kinds:
        return "bools"
    if any(issubclass(kind, bool) for kind in kinds):
        raise InvalidValue(f"{label}: mixes truth values with {_names(kinds - {bool})}")
    if all(issubclass(kind, int) for kind in kinds) and kinds:
        return "integers"
    if all(issubclass(kind, int | float) for kind in kinds):
        return "doubles"
    if all(issubclass(kind, str) for kind in kinds):
        return "strings"
    raise InvalidValue(f"{label}: cannot carry {_names(kinds)} in one column")


def _names(kinds: set[type]) -> str:
    return ", ".join(sorted(kind.__name__ for kind in kinds))
