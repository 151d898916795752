"""Finds analyzers that do not give way, which only their threads' end could stop.

Two kinds. An async analyzer that computes or blocks on the loop all async analyzers share holds
every one of them up; a plain one that goes on long after it was cancelled holds only its own
thread and its lease. Nothing can interrupt either from within a process, so it is made known.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lensd_server.engine.loop import AnalysisLoop
from lensd_server.engine.running import Analysis


@dataclass(frozen=True, slots=True)
class Stuck:
    """What was found: ``analysis`` has not given way for ``seconds``.

    ``holds_loop``: every async analysis waits for it. ``analysis`` is ``None`` when the loop is
    held by something else.
    """

    analysis: Analysis | None
    seconds: float
    holds_loop: bool


class Watchdog:
    """Looks every now and then; tells of each stuck analysis once, and of a held loop once."""

    def __init__(
        self,
        loop: AnalysisLoop,
        running: Callable[[], Sequence[Analysis]],
        tell: Callable[[Stuck], None],
        stall_s: float,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop, self._running, self._tell = loop, running, tell
        self._stall_s, self._clock = stall_s, clock
        self._told: set[int] = set()
        self._asked: float | None = None  # when the loop was asked for an answer it has not given
        self._loop_told = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="lensd-watchdog", daemon=True)

    def start(self) -> None:
        """Looks four times within the time allowed."""
        self._thread.start()

    def close(self) -> None:
        """Stops looking."""
        self._closed.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def look(self) -> None:
        """One look; :meth:`start` repeats it."""
        now = self._clock()
        analyses = self._running()
        self._look_at_loop(now, analyses)
        self._told &= {id(analysis) for analysis in analyses}
        for analysis in analyses:
            since = analysis.ticket.cancelled_at
            if since is None or now - since < self._stall_s or id(analysis) in self._told:
                continue
            self._told.add(id(analysis))
            self._tell(Stuck(analysis, now - since, holds_loop=False))

    def _look_at_loop(self, now: float, analyses: Sequence[Analysis]) -> None:
        if self._asked is None:
            self._asked = now
            self._loop.ask(self._answered)
        elif now - self._asked >= self._stall_s and not self._loop_told:
            self._loop_told = True
            task = self._loop.running_task()
            culprit = next((a for a in analyses if task is not None and a.task is task), None)
            if culprit is not None:
                self._told.add(id(culprit))
            self._tell(Stuck(culprit, now - self._asked, holds_loop=True))

    def _answered(self) -> None:
        self._asked = None
        self._loop_told = False

    def _watch(self) -> None:
        while not self._closed.wait(self._stall_s / 4):
            self.look()
