"""AnalysisService: one analysis a call, or many over one stream."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AbstractContextManager, aclosing
from typing import Protocol, cast

import grpc.aio

from lensd_api.errors import Cancelled, DeadlineExceeded, LensdError
from lensd_proto.v1 import analysis_pb2
from lensd_server.access.quotas import Quotas
from lensd_server.engine.events import Accepted, AnalysisEvent, AnalysisRequest, Executor, Found
from lensd_server.engine.running import is_rejection
from lensd_server.engine.soundness import takes_long
from lensd_server.rpc import wire
from lensd_server.rpc.convert import EventWriter
from lensd_server.rpc.dispatch import Call
from lensd_server.rpc.gate import Gate
from lensd_server.rpc.many import ManyAnalyses
from lensd_server.settings import LimitSettings
from lensd_server.telemetry.metrics import Metrics


class TracesOne(Protocol):
    """Told what becomes of one request."""

    def saw(self, event: AnalysisEvent) -> None:
        """An event came out of the engine."""
        ...

    def sending(self) -> AbstractContextManager[None]:
        """Around handing a message to the caller."""
        ...


class TracesRequests(Protocol):
    """Where requests are traced: :class:`lensd_server.telemetry.tracing.Tracing`."""

    def request(self, request: AnalysisRequest) -> AbstractContextManager[TracesOne]:
        """Around one request."""
        ...

    def interceptor(self) -> grpc.aio.ServerInterceptor:
        """What finds the trace that a call belongs to."""
        ...


class AnalysisServicer:
    """Streams what the executor finds."""

    def __init__(
        self,
        executor: Executor,
        limits: LimitSettings,
        gate: Gate,
        metrics: Metrics,
        quotas: Quotas,
        tracing: TracesRequests | None = None,
    ) -> None:
        self._tracing = tracing
        self._executor = executor
        self.limits = limits
        self._gate = gate
        self._metrics = metrics
        self._quotas = quotas

    async def analyze(
        self, message: analysis_pb2.AnalyzeRequest, call: Call
    ) -> AsyncGenerator[analysis_pb2.AnalyzeResponse]:
        """Runs one analysis."""
        request = await wire.read_large(
            message,
            limits=self.limits,
            peer=call.peer,
            identity=call.identity,
            call_deadline=call.deadline,
        )
        async with aclosing(self.respond(request)) as responses:
            async for response in responses:
                yield response

    async def analyze_many(
        self, messages: AsyncIterator[analysis_pb2.AnalyzeManyRequest], call: Call
    ) -> AsyncGenerator[analysis_pb2.AnalyzeManyResponse]:
        """Runs many analyses over one stream."""
        many = ManyAnalyses(self.respond, self.limits, self._gate, call)
        async with aclosing(many.run(messages)) as responses:
            async for response in responses:
                yield analysis_pb2.AnalyzeManyResponse(response=response)

    async def respond(self, request: AnalysisRequest) -> AsyncGenerator[analysis_pb2.AnalyzeResponse]:
        """The messages of one analysis. Raises LensdError."""
        if self._tracing is None:
            responses = self._respond(request, None)
            async with aclosing(responses):
                async for response in responses:
                    yield response
            return
        with self._tracing.request(request) as traced:
            async with aclosing(self._respond(request, traced)) as responses:
                async for response in responses:
                    with traced.sending():
                        yield response

    async def _respond(
        self, request: AnalysisRequest, traced: TracesOne | None
    ) -> AsyncGenerator[analysis_pb2.AnalyzeResponse]:
        try:
            if request.deadline is not None and request.deadline <= time.monotonic():
                raise DeadlineExceeded("the deadline had passed when the request arrived; allow more time")
            with self._gate.enter(), self._quotas.analysis(request.caller):
                async with aclosing(self._converse(request, traced)) as responses:
                    async for response in responses:
                        yield response
        except LensdError as error:
            if is_rejection(error):
                self._metrics.rejected(error.reason)
            if isinstance(error, Cancelled) and self._gate.cut:
                # Not the caller's doing, and worth another try elsewhere.
                raise self._gate.refusal() from error
            raise

    async def _converse(
        self, request: AnalysisRequest, traced: TracesOne | None
    ) -> AsyncGenerator[analysis_pb2.AnalyzeResponse]:
        writer = EventWriter(request.request_id, self.limits.max_part_bytes)
        began = time.monotonic()
        accepted: Accepted | None = None
        found = False
        async with aclosing(cast("AsyncGenerator[AnalysisEvent]", self._executor.run(request))) as events:
            async for event in events:
                if traced is not None:
                    traced.saw(event)
                if isinstance(event, Accepted):
                    accepted = event
                elif isinstance(event, Found) and not found and accepted is not None:
                    found = True
                    self._metrics.first_result(accepted.analyzer, accepted.model, time.monotonic() - began)
                async for response in _messages(writer, event):
                    yield response


async def _messages(
    writer: EventWriter, event: AnalysisEvent
) -> AsyncGenerator[analysis_pb2.AnalyzeResponse]:
    """The messages of ``event``, made on another thread where making them takes long."""
    messages = writer.messages(event)
    if not (isinstance(event, Found) and takes_long(event.result)):
        for message in messages:
            yield message
        return
    while (message := await asyncio.to_thread(next, messages, None)) is not None:
        yield message
