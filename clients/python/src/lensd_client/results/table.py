"""Tables: columns of equal length, kept as NumPy arrays."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lensd_client.results import html
from lensd_client.results.extras import require

if TYPE_CHECKING:
    import pandas as pd  # pyright: ignore[reportMissingTypeStubs]
    from matplotlib.axes import Axes

#: float64, int64, bool or object (text); with missing values masked, or None in text.
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Table:
    """Columns by name, all of the same length.

    ``table["value"]`` is a NumPy array: float64, int64, bool, or object for text. A column
    with missing values is a masked array, or holds ``None`` if it is text. ``units`` names the
    unit of the columns that have one.
    """

    columns: Mapping[str, Array]
    units: Mapping[str, str] = field(default_factory=dict[str, str])
    name: str = ""
    title: str = ""
    item: str = ""

    def __getitem__(self, column: str) -> Array:
        try:
            return self.columns[column]
        except KeyError:
            raise KeyError(f"no column {column!r}; there are {', '.join(self.columns)}") from None

    def __len__(self) -> int:
        """Number of rows."""
        return next((len(values) for values in self.columns.values()), 0)

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows as dictionaries of plain Python values, ``None`` where a value is missing."""
        names = list(self.columns)
        for values in zip(*self.to_dict().values(), strict=True):
            yield dict(zip(names, values, strict=True))

    def to_dict(self) -> dict[str, list[Any]]:
        """The columns as lists of plain Python values, ``None`` where a value is missing."""
        return {name: values.tolist() for name, values in self.columns.items()}

    def to_pandas(self) -> "pd.DataFrame":
        """A DataFrame; columns without missing values share their memory with this table.

        Missing numbers become NaN, missing integers and truth values pandas' own nullable
        types. Units are in ``DataFrame.attrs["units"]``. Needs the ``pandas`` extra.
        """
        pandas = require("pandas", "pandas")
        columns = {name: _series(pandas, values) for name, values in self.columns.items()}
        frame: pd.DataFrame = pandas.DataFrame(columns, copy=False)
        frame.attrs["units"] = dict(self.units)
        return frame

    def plot(self, *, value: str = "value", top: int = 20, ax: "Axes | None" = None) -> "Axes":
        """Draws the rows with the largest ``value`` as bars. Needs the ``plot`` extra.

        See :func:`lensd_client.plot.bars`.
        """
        from lensd_client.plot import bars  # the extra is optional

        return bars(self, value=value, top=top, ax=ax)

    def __repr__(self) -> str:
        columns = ", ".join(_head(name, self.units) for name in self.columns)
        return f"<Table {self.name!r}: {len(self)} rows of {columns}>"

    def _repr_html_(self) -> str:
        shown = min(len(self), html.SHOWN)
        lists: Sequence[list[Any]] = [values[:shown].tolist() for values in self.columns.values()]
        rest = len(self) - shown
        return html.table(
            [_head(name, self.units) for name in self.columns],
            zip(*lists, strict=True),
            caption=self.title or self.name,
            note=f"{rest} more rows" if rest else "",
        )


def _head(name: str, units: Mapping[str, str]) -> str:
    return f"{name} [{units[name]}]" if units.get(name) else name


def _series(pandas: Any, values: Array) -> Any:
    if not isinstance(values, np.ma.MaskedArray):
        return values
    mask = np.ma.getmaskarray(values)
    if values.dtype.kind == "f":
        return values.filled(np.nan)
    if values.dtype.kind == "b":
        return pandas.arrays.BooleanArray(values.data, mask)
    return pandas.arrays.IntegerArray(values.data, mask)
