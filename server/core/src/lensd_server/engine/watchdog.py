"""Finds analyzers that do not give way, which only their threads' end could stop.

Four kinds. An async analyzer that computes or blocks on the loop all async analyzers share holds
every one of them up, and so do a reduce that does not return for whoever uses its model and a piece of
``ctx.compute`` for whoever waits for that device; a plain
analyzer that goes on long after it was cancelled holds only its own thread and its lease. Nothing can
interrupt any of them from within a process, so it is made known.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.loop import AnalysisLoop
from lensd_server.engine.running import Analysis

#: A busy machine lets this thread look so much later than it wanted to, at most.
_LATE_S = 5.0


@dataclass(frozen=True, slots=True)
class Stuck:
    """What was found: ``analysis`` has not given way for ``seconds``.

    ``holds_others``: every async analysis, or every one of a device, waits for it. ``analysis`` is ``None``
    when that is gone, or when they are held up by something else; ``ticket`` is its one where it is known.
    """

    analysis: Analysis | None
    seconds: float
    holds_others: bool
    ticket: Ticket | None = field(default=None, compare=False)

    @property
    def analyzer(self) -> str:
        """Whose code it is; empty when nobody knows."""
        if self.analysis is not None:
            return self.analysis.analyzer
        return "" if self.ticket is None else self.ticket.analyzer


class Watchdog:
    """Looks every now and then; tells of each stuck analysis once, and of a held loop once."""

    def __init__(
        self,
        loop: AnalysisLoop,
        running: Callable[[], Sequence[Analysis]],
        tell: Callable[[Stuck], None],
        stall_s: float,
        *,
        holding: Callable[[], Sequence[tuple[Ticket, float]]] = lambda: (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._loop, self._running, self._tell = loop, running, tell
        self._holding = holding
        self._stall_s, self._clock = stall_s, clock
        self._told: set[int] = set()
        self._asked: float | None = None  # when the loop was asked for an answer it has not given
        self._resumed = float("-inf")
        self._loop_told = False
        self._device_told: list[Ticket] = []
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

    def resumed(self) -> None:
        """Until now the whole process stood still, stopped or frozen with its container: nobody's fault."""
        self._resumed = self._clock()

    def look(self) -> None:
        """One look; :meth:`start` repeats it."""
        now = self._clock()
        analyses = self._running()
        self._look_at_loop(now, analyses)
        self._look_at_devices(now, analyses)
        self._told &= {id(analysis) for analysis in analyses}
        for analysis in analyses:
            cancelled_at = analysis.ticket.cancelled_at
            if cancelled_at is None or id(analysis) in self._told:
                continue
            if (seconds := self._passed(cancelled_at, now)) >= self._stall_s:
                self._told.add(id(analysis))
                self._tell(Stuck(analysis, seconds, holds_others=False))

    def _look_at_loop(self, now: float, analyses: Sequence[Analysis]) -> None:
        if self._asked is None:
            self._asked = now
            self._loop.ask(self._answered)
        elif (seconds := self._passed(self._asked, now)) >= self._stall_s and not self._loop_told:
            self._loop_told = True
            task = self._loop.running_task()
            culprit = next((a for a in analyses if task is not None and a.task is task), None)
            if culprit is not None:
                self._told.add(id(culprit))
            self._tell(Stuck(culprit, seconds, holds_others=True))

    def _look_at_devices(self, now: float, analyses: Sequence[Analysis]) -> None:
        holding = [(ticket, self._passed(since, now)) for ticket, since in self._holding()]
        held = [(ticket, seconds) for ticket, seconds in holding if seconds >= self._stall_s]
        for ticket, seconds in held:
            if ticket in self._device_told:
                continue
            culprit = next((a for a in analyses if a.ticket is ticket), None)
            if culprit is not None:
                self._told.add(id(culprit))
            self._tell(Stuck(culprit, seconds, holds_others=True, ticket=ticket))
        self._device_told = [ticket for ticket, _ in held]

    def _answered(self) -> None:
        self._asked = None
        self._loop_told = False

    def _passed(self, since: float, now: float) -> float:
        """Seconds since then in which the process ran."""
        return now - max(since, self._resumed)

    def _watch(self) -> None:
        pause = self._stall_s / 4
        began = self._clock()
        while not self._closed.wait(pause):
            if self._clock() - began > pause + max(pause, _LATE_S):
                self.resumed()
            self.look()
            began = self._clock()
