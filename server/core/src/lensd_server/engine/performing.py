"""The whole life of one analysis, from its request to its last event, on the analysis loop."""

import asyncio
import time
from functools import partial

import structlog

from lensd_api import BaseParams, Draining, LensdError, Requirements
from lensd_api.analyzer import is_async
from lensd_server.engine.admission import Admission
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.costs import estimate
from lensd_server.engine.drive import Driver, on_own_thread
from lensd_server.engine.events import (
    Accepted,
    AnalyzerLookup,
    Completed,
    LoadStep,
    Progress,
    RegisteredAnalyzer,
    Warned,
)
from lensd_server.engine.faults import internal_failure
from lensd_server.engine.models.residency import Residency, ResidentModel
from lensd_server.engine.observers import Observers
from lensd_server.engine.running import Analysis, outcome_of
from lensd_server.engine.suitability import choose_model, require
from lensd_server.engine.wakeup import post


class Performer:
    """Performs analyses. Invariant: each ends in exactly one of ``Completed`` and an error, after its
    lease is given back and it has been counted."""

    def __init__(
        self,
        lookup: AnalyzerLookup,
        residency: Residency,
        admission: Admission,
        driver: Driver,
        observers: Observers,
    ) -> None:
        self._lookup, self._residency, self._admission = lookup, residency, admission
        self._driver, self._observers = driver, observers

    async def perform(self, analysis: Analysis) -> None:
        """Runs ``analysis`` to its end; never raises."""
        loop, task, ticket = asyncio.get_running_loop(), asyncio.current_task(), analysis.ticket
        assert task is not None
        analysis.task = task
        structlog.contextvars.bind_contextvars(request_id=ticket.request_id)
        ticket.on_cancel(lambda: post(loop, task.cancel))
        alarm = None if ticket.deadline is None else loop.call_at(ticket.deadline, ticket.expire)
        error: LensdError | None = None
        revision = ""
        try:
            ticket.check()
            revision = await self._analyze(analysis)
        except LensdError as refused:
            error = refused
        except asyncio.CancelledError:
            error = why_cancelled(ticket)
        except Exception as fault:  # a bug of ours: this analysis fails, the server goes on
            error = internal_failure(fault, "running the analysis", request_id=ticket.request_id)
        if alarm is not None:
            alarm.cancel()
        if not ticket.cancelled:
            ticket.watch_device(None)
        # Who cancelled it knows why; what its code raised on the way out does not matter.
        error = (ticket.error() or error) if error is not None else None
        analysis.settle_usage()
        # Counted before it counts as gone: whoever waits for the last one sees it in the metrics.
        self._observers.finished(analysis.record(outcome_of(error)))
        self._admission.leave(analysis)
        # Last of all: whoever reads `Completed` finds the lease given back and the analysis counted.
        if error is None:
            analysis.channel.put_now(Completed(model_revision=revision, usage=ticket.usage))
        analysis.channel.end(error)

    async def _analyze(self, analysis: Analysis) -> str:
        """Everything between a request and its last result; answers the model's revision."""
        request, ticket, channel = analysis.request, analysis.ticket, analysis.channel
        registered = self._lookup.resolve(request.analyzer)
        analysis.analyzer = ticket.analyzer = registered.name
        analysis.distribution = registered.distribution
        with analysis.foreign():
            params = registered.analyzer.Params.parse(request.params)
            needs = registered.analyzer.requirements(params)
        model = choose_model(request.model, needs, self._residency.names)
        analysis.model = model
        ahead = await self._admit(analysis, registered, params, needs)
        self._observers.started(analysis.record())
        await channel.put(self._accepted(registered, model, ahead))
        if not model:
            await self._driver.drive(analysis, registered, params, None)
            return ""
        waited = time.monotonic()
        async with self._residency.lease(
            model, lambda event: channel.put_now(_loading(event)), deadline=ticket.deadline
        ) as resident:
            ticket.usage.queue_s += time.monotonic() - waited
            ticket.watch_device(partial(self._observers.cancel_took, model))
            require(needs, resident.loaded.card.anatomy, model)
            if not analysis.cost.tokens:  # only a model in memory can tell
                await self._reserve(analysis, registered, params, resident)
            with analysis.on(resident.batcher):
                await self._driver.drive(analysis, registered, params, resident)
            self._admission.succeeded(analysis)
            return resident.loaded.card.revision

    async def _admit(
        self, analysis: Analysis, registered: RegisteredAnalyzer, params: BaseParams, needs: Requirements
    ) -> int:
        """Lets the analysis in, checked against its model where that is in memory; answers how many are ahead.

        By itself, so that nothing holds on to the model while a lease is waited for: it may have to make
        room for another one meanwhile.
        """
        resident = self._residency.resident(analysis.model) if analysis.model else None
        if resident is not None:
            require(needs, resident.loaded.card.anatomy, analysis.model)
        ahead = self._admission.admit(analysis)
        if resident is not None:
            await self._reserve(analysis, registered, params, resident)
        return ahead

    async def _reserve(
        self, analysis: Analysis, registered: RegisteredAnalyzer, params: BaseParams, model: ResidentModel
    ) -> None:
        work = partial(estimate, registered, params, model.loaded.card)
        # Whoever computes on a thread may take its time over an estimate as well.
        cost = work() if is_async(registered.analyzer) else await on_own_thread(analysis, work)
        analysis.ticket.check()
        self._admission.reserve(analysis, cost, model.batcher)

    def _accepted(self, registered: RegisteredAnalyzer, model: str, ahead: int) -> Accepted:
        status = self._residency.status(model) if model else None
        return Accepted(
            analyzer=registered.name,
            analyzer_version=registered.version,
            distribution=registered.distribution,
            model=model,
            model_state=None if status is None else status.state,
            model_revision="" if status is None else status.revision,
            queue_position=ahead,
        )


def why_cancelled(ticket: Ticket) -> LensdError:
    """What the reader of a cancelled analysis is told."""
    return ticket.error() or Draining("the server is shutting down", retry_after_s=1.0)


def _loading(event: LoadStep | Warned) -> Progress | Warned:
    if isinstance(event, Warned):
        return event
    return Progress(stage="load", done=event.fraction, total=1.0, unit=event.stage, detail=event.detail)
