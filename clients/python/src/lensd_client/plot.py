"""Figures of results with matplotlib: the ``plot`` extra.

Both functions draw into ``ax``, or into a new figure, and return the axes. Red is positive,
blue negative, white zero, as in the terminal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lensd_client.results.extras import require
from lensd_client.results.table import Table
from lensd_client.results.tensor import Tensor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Array = np.ndarray[Any, Any]

_POSITIVE = "#b2182b"
_NEGATIVE = "#2166ac"
#: Ticks an axis of a heat-map has at most.
_MAX_TICKS = 24


def heatmap(
    source: Table | Tensor,
    *,
    value: str = "value",
    rows: str = "layer",
    columns: str = "index",
    at: Mapping[str, int | str] | None = None,
    ax: "Axes | None" = None,
) -> "Axes":
    """A heat-map of two axes.

    Of a tensor the last two axes are drawn; ``at`` fixes those before them (``{"position": 0}``),
    each at its last coordinate when not given. Of a table, ``value`` is drawn over the integer
    columns ``rows`` and ``columns``; ``at`` selects rows (``{"kind": "head"}``, the default where
    there is such a kind, and the last position). Raises ValueError when there is nothing to
    draw, ImportError without the extra.
    """
    plane = (
        _slice(source, at or {})
        if isinstance(source, Tensor)
        else _pivot(source, value, rows, columns, at or {})
    )
    matrix = plane.matrix
    axes: Any = ax
    if axes is None:
        axes = _new_axes((2.2 + 0.24 * min(matrix.shape[1], 60), 1.6 + 0.2 * min(matrix.shape[0], 60)))
    limit = float(np.nanmax(np.abs(matrix), initial=0.0)) or 1.0
    image = axes.imshow(
        matrix, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto", interpolation="nearest"
    )
    axes.set_facecolor("#dddddd")  # where there is no value
    _ticks(axes.xaxis, matrix.shape[1], plane.labels[1])
    _ticks(axes.yaxis, matrix.shape[0], plane.labels[0])
    axes.set_xlabel(plane.names[1])
    axes.set_ylabel(plane.names[0])
    axes.set_title(_title(source, plane.where), fontsize="medium")
    axes.figure.colorbar(image, ax=axes, label=plane.unit or value, pad=0.03)
    return axes


def bars(table: Table, *, value: str = "value", top: int = 20, ax: "Axes | None" = None) -> "Axes":
    """Horizontal bars of the ``top`` rows with the largest magnitude of ``value``.

    A row is labelled by its other columns of integers and text. Raises KeyError when there is
    no such column, ValueError when it holds no numbers or ``top`` is below 1, ImportError
    without the extra.
    """
    if top < 1:
        raise ValueError(f"top must be at least 1, not {top}")
    numbers = _numbers(table, value)
    order = [i for i in np.argsort(-np.abs(numbers), kind="stable").tolist() if np.isfinite(numbers[i])]
    shown = order[:top]
    if not shown:
        raise ValueError(f"column {value!r} holds no numbers to draw")
    axes: Any = ax
    if axes is None:
        axes = _new_axes((6.4, 1.2 + 0.26 * len(shown)))
    heights = [float(numbers[i]) for i in shown]
    colours = [_NEGATIVE if height < 0 else _POSITIVE for height in heights]
    axes.barh(range(len(shown)), heights, color=colours)
    axes.set_yticks(range(len(shown)), _row_labels(table, value, shown), fontsize="small")
    axes.invert_yaxis()
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel(table.units.get(value) or value)
    more = f"the {len(shown)} largest of {len(table)}" if len(shown) < len(table) else ""
    axes.set_title(_title(table, more), fontsize="medium")
    return axes


@dataclass(frozen=True, slots=True)
class _Plane:
    """What a heat-map draws: a matrix, the names and labels of its axes, what else is fixed."""

    matrix: Array
    names: tuple[str, str]
    labels: tuple[Sequence[str], Sequence[str]]
    unit: str
    where: str


def _new_axes(size: tuple[float, float]) -> Any:
    pyplot = require("matplotlib.pyplot", "plot")
    return pyplot.subplots(figsize=size, layout="constrained")[1]


def _slice(tensor: Tensor, at: Mapping[str, int | str]) -> _Plane:
    dims = tensor.dims
    if tensor.array.ndim < 2 or not tensor.array.size:
        raise ValueError(f"{tensor!r} has no two axes to draw")
    unknown = sorted(set(at) - set(dims[:-2]))
    if unknown:
        raise ValueError(f"cannot fix {', '.join(unknown)}; these axes can be fixed: {list(dims[:-2])}")
    array, said = tensor.array, list[str]()
    for name in dims[:-2]:
        index = int(at.get(name, -1)) % array.shape[0]
        labels = tensor.labels.get(name, ())
        said.append(f"{name} {labels[index] if labels else index}")
        array = array[index]
    labels = (tensor.labels.get(dims[-2], ()), tensor.labels.get(dims[-1], ()))
    return _Plane(array.astype(np.float64), (dims[-2], dims[-1]), labels, tensor.unit, ", ".join(said))


def _pivot(table: Table, value: str, rows: str, columns: str, at: Mapping[str, int | str]) -> _Plane:
    """``value`` over (rows, columns), NaN where no row of the table says anything."""
    chosen = dict(at)
    if "kind" in table.columns and "kind" not in chosen and "head" in table["kind"].tolist():
        chosen["kind"] = "head"
    if "position" in table.columns and "position" not in chosen and len(table):
        chosen["position"] = table["position"].tolist()[-1]
    keep = np.ones(len(table), dtype=np.bool_)
    for name, wanted in chosen.items():
        keep &= np.array([v == wanted for v in table[name].tolist()], dtype=np.bool_)
    numbers = _numbers(table, value)
    cells = [
        (int(r), int(c), float(v))
        for r, c, v, kept in zip(
            table[rows].tolist(), table[columns].tolist(), numbers.tolist(), keep.tolist(), strict=True
        )
        if kept and r is not None and c is not None and min(r, c) >= 0
    ]
    if not cells:
        raise ValueError(f"no rows with {chosen or 'values'} to draw over {rows} and {columns}")
    matrix = np.full((max(c[0] for c in cells) + 1, max(c[1] for c in cells) + 1), np.nan)
    for row, column, number in cells:
        matrix[row, column] = number
    kind = str(chosen.get("kind", columns))
    names = (rows, kind if columns == "index" else columns)
    where = ", ".join(f"{name} {wanted}" for name, wanted in chosen.items() if wanted not in names)
    return _Plane(matrix, names, ((), ()), table.units.get(value, ""), where)


def _numbers(table: Table, value: str) -> Array:
    values = table[value]
    if values.dtype.kind not in "fi":
        raise ValueError(f"column {value!r} does not hold numbers")
    return np.asarray(np.ma.filled(values.astype(np.float64), np.nan))


def _row_labels(table: Table, value: str, shown: list[int]) -> list[str]:
    """The integer and text columns that tell these rows apart; others only repeat themselves."""
    names = [name for name, column in table.columns.items() if name != value and column.dtype.kind in "iO"]
    said: list[list[str]] = []
    for name in names:
        cells = [table[name].tolist()[i] for i in shown]
        if len(set(cells)) == 1 and len(shown) > 1:
            continue
        # "head 3" says it: an index belongs to the text before it.
        is_text = table[name].dtype.kind == "O" or name == "index"
        said.append(["" if cell is None else _plain(cell) if is_text else f"{name} {cell}" for cell in cells])
    return [" ".join(filter(None, parts)) for parts in zip(*said, strict=True)] or [str(i) for i in shown]


def _plain(cell: object) -> str:
    # A dollar sign would begin a formula.
    return str(cell).replace("$", r"\$")


def _ticks(axis: Any, n: int, labels: Sequence[str]) -> None:
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000, n) if n / s <= _MAX_TICKS)
    at = range(0, n, step)
    names = [_plain(labels[i]) for i in at] if labels else [str(i) for i in at]
    long = axis.axis_name == "x" and any(len(name) > 3 for name in names)
    axis.set_ticks(list(at), names, fontsize="small", rotation=60 if long else 0)


def _title(source: Table | Tensor, where: str) -> str:
    title = _plain(source.title or source.name)
    item = f" of {_plain(source.item)}" if source.item else ""
    return f"{title}{item}" + (f"\n{_plain(where)}" if where else "")
