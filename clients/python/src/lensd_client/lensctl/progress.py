"""One progress bar on stderr, for loads and for analyses."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lensd_client.heatmap import visible


def waiting(stage: str, detail: str) -> str:
    """``stage``, and what it waits for where it does."""
    return f"{stage}, waiting for {detail}" if detail else stage


class Bar:
    """Appears with the first update and goes when the block is left; silent without a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", total=None, visible=False, count="")

    def update(self, stage: str, done: float, total: float, unit: str = "") -> None:
        """Shows how far it is; ``total`` 0 when not known."""
        count = f"{done:,.0f}/{total:,.0f} {visible(unit)}" if total else f"{done:,.0f} {visible(unit)}"
        self._progress.update(
            self._task,
            # Text of a server is not markup.
            description=visible(stage).replace("[", r"\["),
            completed=done,
            total=total or None,
            count=count.replace("[", r"\["),
            visible=True,
        )
        self._progress.start()

    def hide(self) -> None:
        """Clears the line, so that something else can be printed there; the next update shows it again."""
        self._progress.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
