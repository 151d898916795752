"""A matrix as coloured blocks in a terminal; as signed digits where there is no colour."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

Array = np.ndarray[Any, Any]
_Rgb = tuple[int, int, int]

_POSITIVE: _Rgb = (178, 24, 43)
_NEGATIVE: _Rgb = (33, 102, 172)
_NEUTRAL: _Rgb = (247, 247, 247)
_UNKNOWN: _Rgb = (128, 128, 128)
#: Most lines a map takes.
_MAX_ROWS = 32
_LABEL_WIDTH = 14
#: Largest entries that are spelt out below the map.
_SPELT_OUT = 3


@dataclass(frozen=True, slots=True)
class Heatmap:
    """Draws ``matrix`` [rows, columns]: red is positive, blue negative, white zero.

    The longer axis runs across when that saves lines and fits. Where entries outnumber the
    cells, a cell shows the entry of the largest magnitude among its own.
    """

    matrix: Array
    axes: tuple[str, str] = ("row", "column")
    labels: tuple[Sequence[str], Sequence[str]] = ((), ())
    unit: str = ""
    title: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        matrix = np.asarray(self.matrix, dtype=np.float64)
        width = options.max_width
        is_coloured = console.color_system in ("256", "truecolor") and not console.no_color
        labels, axes = self.labels, self.axes
        rows, columns = matrix.shape
        narrowest = 1 if is_coloured else 2
        if rows > columns and rows * narrowest + _LABEL_WIDTH <= width:
            matrix, labels, axes = matrix.T, (labels[1], labels[0]), (axes[1], axes[0])
        yield Text.assemble(
            (f"{self.title}  " if self.title else "", "bold"), (f"{axes[0]} ↓ {axes[1]} →", "dim")
        )
        if not matrix.size:
            yield Text("(empty)", style="dim")
            return
        finite = np.abs(matrix[np.isfinite(matrix)])
        largest = float(finite.max()) if finite.size else 0.0
        yield from _draw(matrix, axes, labels, largest, width, is_coloured)
        yield _legend(largest, self.unit, bool((matrix < 0).any()), is_coloured)
        yield _spell_out(matrix, axes, labels)


def _draw(
    matrix: Array,
    axes: tuple[str, str],
    labels: tuple[Sequence[str], Sequence[str]],
    largest: float,
    width: int,
    is_coloured: bool,
) -> RenderResult:
    names = [shorten(name, _LABEL_WIDTH - 2) for name in labels[0]] or [str(i) for i in range(len(matrix))]
    margin = max(len(name) for name in names) + 1
    room = max(2, width - margin)
    # Digits want air between them, blocks do not; both give way before entries are pooled.
    widths = (2, 1) if is_coloured else (3, 2)
    cell = next((w for w in widths if matrix.shape[1] * w <= room), widths[-1])
    per_row = -(-len(matrix) // _MAX_ROWS)
    per_column = -(-matrix.shape[1] // max(1, room // cell))
    pooled = pool(matrix, per_row, per_column)
    yield _ruler(margin, cell, per_column, pooled.shape[1])
    paint = _block if is_coloured else _digit
    for i, row in enumerate(pooled.tolist()):
        line = Text(names[i * per_row].rjust(margin - 1) + " ", style="dim", end="", no_wrap=True)
        cells = [paint(value, largest, cell) for value in row]
        yield Text.assemble(line, *cells, no_wrap=True)
    if per_row > 1 or per_column > 1:
        yield Text(f"a cell shows the largest of {per_row} x {per_column} entries", style="dim")
    if labels[1] and matrix.shape[1] <= 32:
        said = "  ".join(f"{i} {shorten(name, 20)!r}" for i, name in enumerate(labels[1]))
        yield Text(f"{axes[1]}: {said}", style="dim")


def pool(matrix: Array, per_row: int, per_column: int) -> Array:
    """Of every block of entries the one of the largest magnitude, sign kept; NaN only among NaN."""
    rows, columns = matrix.shape
    blocks = np.full((-(-rows // per_row) * per_row, -(-columns // per_column) * per_column), np.nan)
    blocks[:rows, :columns] = matrix
    blocks = blocks.reshape(-1, per_row, blocks.shape[1] // per_column, per_column).swapaxes(1, 2)
    flat = blocks.reshape(*blocks.shape[:2], -1)
    best = np.where(np.isnan(flat), -1.0, np.abs(flat)).argmax(axis=-1)
    return np.take_along_axis(flat, best[..., None], axis=-1)[..., 0]


def shorten(text: str, width: int) -> str:
    """``text`` on one line in at most ``width`` characters, control characters made visible."""
    line = visible(text)
    return line if len(line) <= width else line[: width - 1] + "…"


def visible(text: str) -> str:
    """``text`` with control characters spelt out, so that none of them reaches the terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _ruler(margin: int, cell: int, per_column: int, columns: int) -> Text:
    """Column numbers, as often as they fit."""
    step = next(s for s in (1, 2, 5, 10, 20, 50, 100, 1000) if s * cell > len(str(columns * per_column)))
    marks = "".join(str(i * per_column).rjust(cell).ljust(step * cell) for i in range(0, columns, step))
    return Text(" " * margin + marks.rstrip(), style="dim", no_wrap=True, overflow="crop")


def _block(value: float, largest: float, width: int) -> tuple[str, str]:
    return " " * width, f"on {_hex(colour(value, largest))}"


def _digit(value: float, largest: float, width: int) -> tuple[str, str]:
    if not np.isfinite(value):
        return "?".rjust(width), "dim"
    level = round(9 * abs(value) / largest) if largest else 0
    if not level:
        return "·".rjust(width), "dim"
    return f"{'-' if value < 0 else '+'}{level}".rjust(width), "blue" if value < 0 else "red"


def colour(value: float, largest: float) -> _Rgb:
    """From blue over white to red; grey for what is not a number."""
    if not np.isfinite(value):
        return _UNKNOWN
    strength = abs(value) / largest if largest else 0.0
    end = _NEGATIVE if value < 0 else _POSITIVE
    red, green, blue = (
        round(start + (stop - start) * strength) for start, stop in zip(_NEUTRAL, end, strict=True)
    )
    return red, green, blue


def _hex(rgb: _Rgb) -> str:
    return "#{:02x}{:02x}{:02x}".format(*rgb)


def _legend(largest: float, unit: str, has_negative: bool, is_coloured: bool) -> Text:
    unit = f" {visible(unit)}" if unit else ""
    if not is_coloured:
        return Text(f"9 is {largest:.4g}{unit}, · below a twentieth of it, ? not a number", style="dim")
    low = -1.0 if has_negative else 0.0
    ramp = [_block(largest * level, largest, 1) for level in np.linspace(low, 1.0, 17).tolist()]
    return Text.assemble(
        (f"{low * largest:+.4g} " if low else "0 ", "dim"), *ramp, (f" {largest:+.4g}{unit}", "dim")
    )


def _spell_out(matrix: Array, axes: tuple[str, str], labels: tuple[Sequence[str], Sequence[str]]) -> Text:
    strength = np.where(np.isfinite(matrix), np.abs(matrix), -1.0)
    order = np.argsort(-strength, axis=None, kind="stable")[:_SPELT_OUT].tolist()

    def name(axis: int, i: int) -> str:
        return shorten(labels[axis][i], 20) if labels[axis] else str(i)

    found: list[str] = []
    for index in order:
        i, j = divmod(index, matrix.shape[1])
        found.append(f"{axes[0]} {name(0, i)} {axes[1]} {name(1, j)} {matrix[i, j]:+.4g}")
    return Text("largest: " + ", ".join(found), style="dim")
