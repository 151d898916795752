"""Runs analyses in this process: the first implementation of the executor seam.

Async analyzers share one event loop of their own, each plain generator has a worker thread of its
own; neither ever runs on the loop that serves callers. Invariant: however an analysis ends, its rows
leave the queue at once and its lease is given back as soon as its code has stopped.
"""

import sys
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

import structlog
import torch

from lensd_api import Draining, Internal, LensdError
from lensd_server.engine.admission import Admission
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.batching.turn import Turn
from lensd_server.engine.channel import Channel
from lensd_server.engine.compute import ComputeThread
from lensd_server.engine.device import Device, switch_interval_s
from lensd_server.engine.drive import Driver
from lensd_server.engine.events import (
    Accepted,
    AnalysisEvent,
    AnalysisRequest,
    AnalyzerLookup,
    Completed,
    Progress,
)
from lensd_server.engine.loop import AnalysisLoop
from lensd_server.engine.models.residency import Residency
from lensd_server.engine.observers import Observers
from lensd_server.engine.performing import Performer, why_cancelled
from lensd_server.engine.running import Analysis
from lensd_server.engine.storage import Storage
from lensd_server.engine.tracing import CURRENT_SPAN
from lensd_server.engine.watchdog import Stuck, Watchdog
from lensd_server.settings import LimitSettings

#: A running analysis says something at least this often, so that proxies keep its stream open.
HEARTBEAT_S = 10.0

#: How long the analysis loop gets to end; one that an analyzer holds is left behind.
_HELD_LOOP_S = 5.0

_log = structlog.get_logger("lensd.engine")


@dataclass(frozen=True, slots=True)
class RunningAnalysis:
    """A running analysis as an operator sees it."""

    request_id: str
    analyzer: str
    model: str
    age_s: float
    #: Rows that wait or run now.
    pending_rows: int
    peer: str
    identity: str


class LocalExecutor:
    """Implements :class:`lensd_server.engine.events.Executor` with threads of this process.

    ``cpu_turn`` must be the one the loader gives its devices. ``when_stuck`` is called on a thread
    of its own when an analyzer does not give way, after its caller has been told.
    """

    def __init__(
        self,
        lookup: AnalyzerLookup,
        residency: Residency,
        limits: LimitSettings,
        observers: Observers | None = None,
        *,
        storage: Storage,
        cpu_turn: Turn,
        heartbeat_s: float = HEARTBEAT_S,
        when_stuck: Callable[[Stuck], None] | None = None,
    ) -> None:
        self._residency, self._limits = residency, limits
        self._heartbeat_s = heartbeat_s
        self._computing = ComputeThread(Device(torch.device("cpu"), cpu_turn))
        self._admission = Admission(limits)
        self._performer = Performer(
            lookup,
            residency,
            self._admission,
            Driver(storage, self._computing, residency.set_aside, limits),
            observers or Observers(),
        )
        self._loop = AnalysisLoop()
        self._draining = False
        self._when_stuck = when_stuck
        self._watchdog: Watchdog | None = None
        if limits.max_stall_s is not None:
            self._watchdog = Watchdog(
                self._loop,
                self._admission.inside,
                self._stuck,
                limits.max_stall_s,
                holding=self._holding,
            )
            self._watchdog.start()
        sys.setswitchinterval(switch_interval_s())

    def limit(self, limits: LimitSettings) -> None:
        """Replaces the limits of what is admitted from now on; what runs keeps its own."""
        self._limits = self._admission.limits = limits

    @property
    def draining(self) -> bool:
        """Whether new analyses are refused because the server is shutting down."""
        return self._draining

    async def run(self, request: AnalysisRequest) -> AsyncGenerator[AnalysisEvent, None]:
        """See :meth:`lensd_server.engine.events.Executor.run`."""
        analysis = self._begin(request)
        channel, ticket = analysis.channel, analysis.ticket
        last: Progress | None = None
        over = False
        try:
            while not over:
                event = await channel.next(self._patience(ticket))
                if event is None:
                    if ticket.expired():
                        ticket.expire()  # ends the channel: the next turn raises
                    elif last is not None:
                        yield self._standing(analysis) or last
                    continue
                if isinstance(event, Accepted):
                    last = Progress(stage="running", done=0.0, total=0.0, unit="")
                elif isinstance(event, Progress):
                    last = event
                over = isinstance(event, Completed)
                yield event
        except LensdError:
            over = True
            raise
        finally:
            if not over:
                ticket.cancel()
            ticket.retire()
            channel.close()

    def running(self) -> list[RunningAnalysis]:
        """What runs now, oldest first."""
        return [self._describe(analysis) for analysis in self._admission.inside()]

    def cancel(self, request_id: str) -> bool:
        """Cancels on an operator's wish. False when no such analysis was running."""
        meant = [a for a in self._admission.inside() if a.request.request_id == request_id]
        cancelled = [a.ticket.cancel("an operator cancelled the analysis") for a in meant]
        return any(cancelled)

    async def drain(self, grace_s: float) -> int:
        """Refuses new analyses, lets running ones finish for ``grace_s``, then cancels what is left.

        Answers how many were cancelled. One whose code does not stop is left to the process's end.
        """
        self._draining = True
        if await self.settled(grace_s):
            return 0
        left = self._admission.inside()
        for analysis in left:
            analysis.ticket.cancel("the server is shutting down")
        await self.settled(min(2.0, max(0.1, grace_s)))
        return len(left)

    async def settled(self, timeout_s: float | None = None) -> bool:
        """Waits until no analysis runs; False when that took longer than ``timeout_s``."""
        return await self._admission.empty(timeout_s)

    def close(self) -> None:
        """Ends the executor's threads. Drain first."""
        self._draining = True
        if self._watchdog is not None:
            self._watchdog.close()
        self._loop.close(_HELD_LOOP_S)
        self._computing.close()

    def _begin(self, request: AnalysisRequest) -> Analysis:
        if self._draining:
            raise Draining("the server is shutting down; try another one, or again later", retry_after_s=1.0)
        deadline = request.deadline
        if self._limits.max_timeout_s is not None:
            longest = time.monotonic() + self._limits.max_timeout_s
            deadline = longest if deadline is None else min(deadline, longest)
        ticket = Ticket(
            span=CURRENT_SPAN.get(),
            request_id=request.request_id,
            analyzer=request.analyzer,
            peer=request.peer,
            identity=request.identity,
            priority=request.priority,
            deadline=deadline,
        )
        channel = Channel()
        ticket.on_cancel(lambda: channel.abort(why_cancelled(ticket)))
        analysis = Analysis(request, ticket, channel)
        self._loop.start(self._performer.perform(analysis))
        return analysis

    def _patience(self, ticket: Ticket) -> float:
        if ticket.deadline is None:
            return self._heartbeat_s
        return min(self._heartbeat_s, ticket.deadline - time.monotonic())

    def _holding(self) -> list[tuple[Ticket, float]]:
        """Whose code is on a device thread, or has a turn that others wait for, and since when."""
        residents = [r for name in self._residency.names for r in self._residency.residents(name)]
        turns = {self._computing.device.turn, *(resident.loaded.device.turn for resident in residents)}
        found = [resident.batcher.reducing for resident in residents]
        found += [self._computing.holding_up, *(turn.holding_up for turn in turns)]
        since: dict[Ticket, float] = {}
        for ticket, began in filter(None, found):
            since[ticket] = min(began, since.get(ticket, began))
        return list(since.items())

    def _stuck(self, found: Stuck) -> None:
        """Tells the caller of what does not give way, and whoever can do more about it."""
        analysis = found.analysis
        analyzer = found.analyzer
        request_id = "" if analysis is None else analysis.ticket.request_id
        _log.error(
            "an analyzer does not give way",
            analyzer=analyzer,
            request_id=request_id,
            seconds=round(found.seconds, 1),
            holds_others=found.holds_others,
        )
        if analysis is not None:
            analysis.channel.abort(
                Internal(
                    f"analyzer {analyzer} has not given way for {found.seconds:.0f} s and was given up; "
                    "its author should compute in ctx.compute, a short piece at a time, or in a plain generator",
                    reason="ANALYZER_STUCK",
                    metadata={"analyzer": analyzer},
                )
            )
        if self._when_stuck is not None:
            self._when_stuck(found)

    def _standing(self, analysis: Analysis) -> Progress | None:
        """How an analysis stands that only waits: for others whose rows have their turn before."""
        waiting, running = analysis.standing()
        if running or not waiting:
            return None
        return Progress(stage="queued", done=0.0, total=float(waiting), unit="rows")

    def _describe(self, analysis: Analysis) -> RunningAnalysis:
        return RunningAnalysis(
            request_id=analysis.request.request_id,
            analyzer=analysis.analyzer,
            model=analysis.model,
            age_s=time.monotonic() - analysis.started,
            pending_rows=sum(analysis.standing()),
            peer=analysis.request.peer,
            identity=analysis.request.identity,
        )
