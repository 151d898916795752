"""Columns drawn beside one another while they fit, in several blocks when not.

A terminal that is too narrow would cut numbers off, and a number cut in two is another number.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

#: Text may be folded down to this width; numbers never are.
_LEAST_TEXT = 12
#: Space after a cell, and the line between columns.
_BETWEEN = 2


@dataclass(frozen=True, slots=True)
class Column:
    """A heading and its cells. ``is_extra``: only drawn where everything fits, such as bars."""

    head: Text
    cells: Sequence[Text]
    is_text: bool = False
    is_extra: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether no cell says anything: missing values, and empty texts, which are drawn in quotes."""
        return all(cell.plain in ("", "''") for cell in self.cells)

    @property
    def least_width(self) -> int:
        """What it needs at least: all of its numbers, or room to fold its text."""
        widest = max((_width(cell) for cell in self.cells), default=0)
        return max(_width(self.head), min(widest, _LEAST_TEXT) if self.is_text else widest)


class Columns:
    """A table of ``columns``; the first one names the rows and is repeated in every block."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        everything = tuple(self._columns)
        if _needed(everything) <= options.max_width:
            yield _grid(everything)
            return
        for block in _blocks([c for c in everything if not c.is_extra], options.max_width):
            yield _grid(block)


def _blocks(columns: Sequence[Column], width: int) -> Iterator[Sequence[Column]]:
    first, *others = columns
    cuts = [0]
    for i in range(1, len(others) + 1):
        if _needed([first, *others[cuts[-1] : i]]) > width and i - 1 > cuts[-1]:
            cuts.append(i - 1)
    for start, stop in pairwise([*cuts, len(others)]):
        yield [first, *others[start:stop]]


def _needed(columns: Sequence[Column]) -> int:
    return sum(column.least_width + _BETWEEN for column in columns) + 1


def _width(text: Text) -> int:
    return max((cell_len(line) for line in text.plain.splitlines()), default=0)


def _grid(columns: Sequence[Column]) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns:
        grid.add_column(
            column.head,
            justify="left" if column.is_text or column.is_extra else "right",
            no_wrap=not column.is_text,
            overflow="fold",
        )
    for row in zip(*(column.cells for column in columns), strict=True):
        grid.add_row(*row)
    return grid
