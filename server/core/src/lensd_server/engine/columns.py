"""Columns of a table as an analyzer gave them: their type, their values and what a row takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from lensd_server.engine.dense import as_array
from lensd_server.engine.plain import Unsound

Kind = Literal["doubles", "integers", "strings", "bools"]

#: Most bytes one value takes on the wire; what a string holds comes on top of its tag and length.
_WIDTHS = {"doubles": 8, "integers": 10, "bools": 1, "strings": 6}
#: The largest entry of the list of missing rows.
_NULL_BYTES = 5
#: Tags and lengths around a column.
_COLUMN_OVERHEAD = 40
_LARGEST = 2**63 - 1
#: What a Python object takes beyond what it says of itself.
_OBJECT_BYTES = 56


@dataclass(frozen=True, slots=True)
class Column:
    """Values of one type, ``None`` where one is missing: a list, or an array without gaps."""

    name: str
    unit: str
    kind: Kind
    values: "list[Any] | np.ndarray[Any, Any]"
    #: Rows without a value, ascending.
    nulls: tuple[int, ...]
    #: Of all its strings together.
    string_bytes: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether no row has a value, so that nothing is known of the type."""
        return len(self.nulls) == len(self.values)

    @property
    def wire_overhead(self) -> int:
        """Bytes of a part of it that holds no row, at most."""
        return len(self.name.encode()) + len(self.unit.encode()) + _COLUMN_OVERHEAD

    @property
    def wire_bytes(self) -> int:
        """Upper bound of the bytes all rows take on the wire."""
        return self.string_bytes + self._width * len(self.values)

    def widths(self) -> "np.ndarray[Any, Any] | int":
        """Upper bound of the bytes each row takes on the wire: one number, or one a row."""
        if self.kind != "strings":
            return self._width
        sizes = (0 if value is None else len(value.encode()) for value in self.values)
        return np.fromiter(sizes, dtype=np.int64, count=len(self.values)) + self._width

    def memory_bytes(self) -> int:
        """About what its values occupy here."""
        if isinstance(self.values, np.ndarray):
            return self.values.nbytes
        return _OBJECT_BYTES * len(self.values) + self.string_bytes

    @property
    def _width(self) -> int:
        return _WIDTHS[self.kind] + (_NULL_BYTES if self.nulls else 0)


def read_column(name: str, raw: Any, unit: str = "") -> Column:
    """``raw`` as a column, in memory of its own: its analyzer may go on writing into what it gave.

    Raises Unsound for what is not a sequence of values of one type that the wire has.
    """
    values = _values(raw)
    if isinstance(values, np.ndarray):
        kind = {"b": "bools", "f": "doubles"}.get(values.dtype.kind, "integers")
        if values.dtype.kind == "u" and values.size and int(values.max()) > _LARGEST:
            raise Unsound("holds whole numbers beyond 64 bits")
        return Column(name, unit, cast("Kind", kind), values, ())
    kinds = set(map(type, values))
    nulls: tuple[int, ...] = ()
    if type(None) in kinds:
        nulls = tuple(row for row, value in enumerate(values) if value is None)
        kinds.discard(type(None))
    kind = _kind(kinds)
    if any(issubclass(type_, int) for type_ in kinds) and kind != "bools":
        whole = [value for value in values if isinstance(value, int)]
        if max(whole) > _LARGEST or min(whole) < -_LARGEST - 1:
            raise Unsound("holds whole numbers beyond 64 bits")
    string_bytes = 0
    if kind == "strings":
        try:
            string_bytes = len("".join([value for value in values if value is not None]).encode())
        except UnicodeEncodeError:
            raise Unsound("holds a lone surrogate, which UTF-8 cannot carry") from None
    return Column(name, unit, kind, values, nulls, string_bytes)


def row_ends(columns: Sequence[Column], rows: int) -> "np.ndarray[Any, Any]":
    """Bytes on the wire, at most, up to the end of each row."""
    return np.cumsum(np.zeros(rows, dtype=np.int64) + sum(column.widths() for column in columns))


def _values(raw: Any) -> "list[Any] | np.ndarray[Any, Any]":
    if isinstance(raw, str | bytes | Mapping | set | frozenset):
        raise Unsound(f"a {type(cast('object', raw)).__name__} is not a sequence of values")
    if hasattr(raw, "detach"):
        dense = as_array(raw)
        raw = dense.as_torch().float().numpy() if dense.element == "bfloat16" else dense.array
    if isinstance(raw, np.ndarray) and not isinstance(raw, np.ma.MaskedArray):
        array = cast("np.ndarray[Any, Any]", raw)
        if array.ndim != 1:
            raise Unsound(f"has {array.ndim} dimensions; a column has one")
        if array.dtype.kind in "biu":
            return array.copy()
        if array.dtype.kind == "f":
            # Longer floats would come out as NumPy's own.
            return array.copy() if array.dtype.itemsize <= 8 else array.astype(np.float64)
    try:
        values: Any = raw.tolist() if hasattr(raw, "tolist") else list(raw)
    except TypeError:
        raise Unsound(f"a {type(raw).__name__} is not a sequence of values") from None
    if not isinstance(values, list):
        raise Unsound("a single value, not a sequence of values")
    listed = cast("list[Any]", values)
    if any(issubclass(type_, np.generic) for type_ in set(map(type, listed))):
        return [value.item() if isinstance(value, np.generic) else value for value in listed]
    return listed


def _kind(kinds: set[type]) -> Kind:
    if not kinds:
        return "doubles"
    if all(issubclass(kind, bool) for kind in kinds):
        return "bools"
    if any(issubclass(kind, bool) for kind in kinds):
        raise Unsound(f"mixes truth values with {_names(kinds - {bool})}")
    if all(issubclass(kind, int) for kind in kinds):
        return "integers"
    if all(issubclass(kind, int | float) for kind in kinds):
        return "doubles"
    if all(issubclass(kind, str) for kind in kinds):
        return "strings"
    raise Unsound(f"cannot carry {_names(kinds)} in one column")


def _names(kinds: set[type]) -> str:
    return ", ".join(sorted(kind.__name__ for kind in kinds))
