"""What a benchmark found and how it is shown: ratios to a stated baseline, checks, and the rest.

A time by itself says as much about the machine as about the program, so the first table holds ratios,
each with its median, its quartiles and how many there are; figures in other units only stand beside.
"""

import json
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

#: Where results are kept, below the folder a benchmark is started in.
OUT = Path(".bench")


@dataclass(frozen=True, slots=True)
class Ratio:
    """``what`` over ``baseline``, once a pair or round. A target is ``at_most`` or ``at_least``."""

    what: str
    baseline: str
    values: Sequence[float]
    at_most: float | None = None
    at_least: float | None = None

    @property
    def median(self) -> float:
        """The figure to quote."""
        return statistics.median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The middle half lies between them; both are the value when there is one."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        low, _, high = statistics.quantiles(self.values, n=4, method="inclusive")
        return low, high

    @property
    def met(self) -> bool | None:
        """Whether the median keeps to the target; ``None`` without one."""
        if self.at_most is not None:
            return self.median <= self.at_most
        return None if self.at_least is None else self.median >= self.at_least

    @property
    def target(self) -> str:
        """The target as it is printed."""
        if self.at_most is not None:
            return f"at most {self.at_most:g}"
        return "" if self.at_least is None else f"at least {self.at_least:g}"

    @property
    def verdict(self) -> str:
        """Met, or by how much it is missed."""
        if self.met is None:
            return ""
        bound = self.at_most if self.at_most is not None else self.at_least
        assert bound is not None
        return "[green]met[/]" if self.met else f"[red]missed by {abs(self.median / bound - 1):.1%}[/]"


@dataclass(frozen=True, slots=True)
class Check:
    """Something that must hold. ``met`` is ``None`` where it could not be looked at."""

    what: str
    found: str
    met: bool | None


@dataclass(frozen=True, slots=True)
class Report:
    """One benchmark's findings. ``setting`` says what was run; ``figures`` are what the ratios were
    made of, in their own units."""

    name: str
    setting: str
    ratios: Sequence[Ratio] = ()
    checks: Sequence[Check] = ()
    figures: Sequence[tuple[str, str]] = ()
    data: Any = None
    seconds: float = 0.0
    #: Share of the full size that was run; below 1 nothing here may be quoted.
    share: float = 1.0
    notes: Sequence[str] = field(default_factory=tuple)

    @property
    def failed(self) -> list[str]:
        """Checks that do not hold. A target missed is a finding; a broken invariant is a fault."""
        return [check.what for check in self.checks if check.met is False]


def print_report(report: Report) -> None:
    """Prints ratios, checks, figures."""
    console = console_of_any_width()
    size = "" if report.share == 1 else f"  [yellow](share {report.share:g} of the size: not to be quoted)[/]"
    console.print(f"\n[bold]{report.name}[/]{size}\n{report.setting}")
    if report.ratios:
        console.print(_ratio_table(report.ratios))
    if report.checks:
        console.print(_check_table(report.checks))
    if report.figures:
        console.print(_figure_table(report.figures))
    for note in report.notes:
        console.print(note)
    console.print(f"{report.seconds:.0f} s")


def save_report(report: Report, machine: str, busy: float) -> Path:
    """Writes everything as JSON below :data:`OUT`; answers where."""
    OUT.mkdir(exist_ok=True)
    path = OUT / f"{report.name}-{time.strftime('%Y%m%dT%H%M%S')}.json"
    content = {"machine": machine, "busy_before": busy, **asdict(report)}
    content["ratios"] = [
        {**asdict(r), "median": r.median, "quartiles": r.quartiles, "met": r.met} for r in report.ratios
    ]
    path.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
    return path


def console_of_any_width() -> Console:
    """A console whose tables are not cut where nobody looks at them."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 130  # a file or a pipe
    return console


def _ratio_table(ratios: Sequence[Ratio]) -> Table:
    table = Table("ratio", "over", "median", "middle half", "of", "target", "", title="", show_edge=False)
    for ratio in ratios:
        low, high = ratio.quartiles
        table.add_row(
            ratio.what,
            ratio.baseline,
            f"{ratio.median:.3f}",
            f"{low:.3f} to {high:.3f}",
            str(len(ratio.values)),
            ratio.target,
            ratio.verdict,
        )
    return table


def _check_table(checks: Sequence[Check]) -> Table:
    table = Table("must hold", "found", "", show_edge=False)
    for check in checks:
        table.add_row(check.what, check.found, _holds(check.met))
    return table


def _holds(met: bool | None) -> str:
    if met is None:
        return "[yellow]not looked at[/]"
    return "[green]holds[/]" if met else "[red]does not hold[/]"


def _figure_table(figures: Sequence[tuple[str, str]]) -> Table:
    table = Table("beside it", "", show_edge=False)
    for what, value in figures:
        table.add_row(what, value)
    return table


def scaled(count: int, share: float, least: int = 1) -> int:
    """``share`` of ``count``, at least ``least``."""
    return max(least, round(count * share))


def pairwise(mine: Sequence[float], base: Sequence[float]) -> list[float]:
    """Each of ``mine`` over its partner in ``base``."""
    return [a / b for a, b in zip(mine, base, strict=True)]


def table_rows(headings: Sequence[str], rows: Iterator[Sequence[str]] | Sequence[Sequence[str]]) -> Table:
    """A plain table in the style of the others."""
    table = Table(*headings, show_edge=False)
    for row in rows:
        table.add_row(*row)
    return table
