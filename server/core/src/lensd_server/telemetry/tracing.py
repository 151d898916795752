"""OpenTelemetry spans of analyses: request, admission, load, analyzer, queue, batch and stream.

Off by default, and then nothing of this is imported, no span made and no metadata read. A request
continues the trace its caller names in the metadata ``traceparent`` (W3C trace context).
"""

import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import grpc
import grpc.aio
import structlog
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode, Tracer

from lensd_api.errors import LensdError
from lensd_server.engine.events import Accepted, AnalysisEvent, AnalysisRequest, Completed, Progress
from lensd_server.engine.observers import BatchRecord
from lensd_server.engine.tracing import CURRENT_SPAN
from lensd_server.telemetry.exemplars import belongs_to

#: The trace that a call's metadata names.
_CALLER: ContextVar[Context | None] = ContextVar("lensd_caller_trace", default=None)
#: Links of one batch to its neighbours: enough to see whom it was shared with.
_MAX_LINKS = 32


class TraceInterceptor(grpc.aio.ServerInterceptor):
    """Remembers the caller's trace for whatever handles the call, which runs in the same task."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler as it is."""
        carried = {str(key): value for key, value in handler_call_details.invocation_metadata or ()}
        _CALLER.set(propagate.extract(carried))
        return await continuation(handler_call_details)


class Tracing:
    """Makes the spans. Its methods are the RPC layer's and, as a batch observer, the engine's."""

    def __init__(self, tracer: Tracer, close: Callable[[], None] = lambda: None) -> None:
        self._tracer = tracer
        #: Sends what has not been sent.
        self.close = close

    def interceptor(self) -> grpc.aio.ServerInterceptor:
        """What finds the trace that a call belongs to."""
        return TraceInterceptor()

    @contextmanager
    def request(self, request: AnalysisRequest) -> Iterator["RequestTrace"]:
        """The span of one analysis and what is within it; an error of the body becomes its status."""
        span = self._tracer.start_span(
            "lensd.analysis",
            context=_CALLER.get(),
            kind=SpanKind.SERVER,
            attributes={
                "lensd.request_id": request.request_id,
                "lensd.analyzer": request.analyzer,
                "lensd.model": request.model,
                "lensd.priority": str(request.priority),
            },
        )
        # Not taken back: each request is handled in a context of its own.
        CURRENT_SPAN.set(span if span.is_recording() else None)
        if span.is_recording():
            trace_id = format(span.get_span_context().trace_id, "032x")
            belongs_to(trace_id)
            structlog.contextvars.bind_contextvars(trace_id=trace_id)
        traced = RequestTrace(self._tracer, span)
        try:
            yield traced
            span.set_status(Status(StatusCode.OK))
        except LensdError as error:
            span.set_attributes({"lensd.reason": error.reason, "rpc.grpc.status": error.status})
            span.set_status(Status(StatusCode.ERROR, error.reason))
            raise
        except BaseException as error:  # the caller went away, or a fault of ours that is reported elsewhere
            span.set_status(Status(StatusCode.ERROR, type(error).__name__))
            raise
        finally:
            traced.end()

    # As a batch observer, on a device thread

    def batch_ran(self, batch: BatchRecord) -> None:
        """One span a traced request for its wait, one for the batch, linked to those who shared it."""
        ended = time.time_ns()
        began = ended - round(batch.seconds * 1e9)
        attributes = {
            "lensd.model": batch.model,
            "lensd.batch.rows": batch.rows,
            "lensd.batch.tokens": batch.tokens,
        }
        waits: dict[Span, float] = {}
        for span, waited_s in batch.traced:
            waits[span] = max(waited_s, waits.get(span, 0.0))
        for span, waited_s in waits.items():
            within = trace.set_span_in_context(span)
            if waited_s > 0:
                asked = began - round(waited_s * 1e9)
                self._tracer.start_span("lensd.queue", context=within, start_time=asked).end(began)
            others = [Link(other.get_span_context()) for other in waits if other is not span]
            self._tracer.start_span(
                "lensd.batch",
                context=within,
                start_time=began,
                links=others[:_MAX_LINKS],
                attributes=attributes,
            ).end(ended)

    def queue_changed(self, model: str, rows: int, tokens: int) -> None:
        """Not a span's business."""

    def cancel_took(self, model: str, seconds: float) -> None:
        """Not a span's business."""


class RequestTrace:
    """The spans within one request's, each begun when the one before it ends."""

    def __init__(self, tracer: Tracer, span: Span) -> None:
        self._tracer, self._span = tracer, span
        self._within = trace.set_span_in_context(span)
        self._phase: Span | None = self._begin("lensd.admission")
        self._loading = False
        self._first_sent = 0
        self._messages, self._sending_ns, self._sent_at = 0, 0, 0

    def saw(self, event: AnalysisEvent) -> None:
        """An event came out of the engine."""
        if isinstance(event, Accepted):
            self._span.set_attributes(
                {
                    "lensd.analyzer": event.analyzer,
                    "lensd.analyzer.version": event.analyzer_version,
                    "lensd.model": event.model,
                }
            )
            self._turn_to("lensd.analyzer")
        elif isinstance(event, Progress) and event.stage.startswith("load") and not self._loading:
            self._loading = True
            self._turn_to("lensd.load")
        elif self._loading and not (isinstance(event, Progress) and event.stage.startswith("load")):
            self._loading = False
            self._turn_to("lensd.analyzer")
        if isinstance(event, Completed):
            self._span.set_attributes(_usage(event))

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Around handing one message to the caller, who may be slow to take it."""
        began = time.time_ns()
        self._first_sent = self._first_sent or began
        try:
            yield
        finally:
            self._sent_at = time.time_ns()
            self._messages += 1
            self._sending_ns += self._sent_at - began

    def end(self) -> None:
        """The request is over."""
        if self._phase is not None:
            self._phase.end()
        if self._messages:
            attributes: Mapping[str, Any] = {
                "lensd.stream.messages": self._messages,
                "lensd.stream.sending_s": self._sending_ns / 1e9,
            }
            self._tracer.start_span(
                "lensd.stream", context=self._within, start_time=self._first_sent, attributes=attributes
            ).end(self._sent_at)
        self._span.end()

    def _turn_to(self, name: str) -> None:
        if self._phase is not None:
            self._phase.end()
        self._phase = self._begin(name)

    def _begin(self, name: str) -> Span:
        return self._tracer.start_span(name, context=self._within)


def _usage(event: Completed) -> dict[str, float]:
    usage = event.usage
    return {
        "lensd.queue_s": usage.queue_s,
        "lensd.forward_s": usage.forward_s,
        "lensd.compute_s": usage.compute_s,
        "lensd.rows": usage.rows,
        "lensd.tokens": usage.tokens,
    }


def open_tracing(endpoint: str, sample_ratio: float, version: str) -> Tracing:
    """Sends spans to an OTLP collector at ``endpoint``.

    Of requests without a trace of their own the share ``sample_ratio`` is recorded; others as their
    caller decided. Raises ImportError where the extra ``tracing`` is not installed.
    """
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

    provider = TracerProvider(
        resource=Resource.create({"service.name": "lensd", "service.version": version}),
        sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
        shutdown_on_exit=False,
    )
    exporter = OTLPSpanExporter(endpoint=endpoint, insecure=not endpoint.startswith("https:"))
    provider.add_span_processor(BatchSpanProcessor(exporter))
    return Tracing(provider.get_tracer("lensd", version), provider.shutdown)
