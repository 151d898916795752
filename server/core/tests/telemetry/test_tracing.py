"""Spans of a request, from the caller's trace to the batch it shared."""

import subprocess
import sys
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from lensd_api import InvalidParams
from lensd_server.engine.events import Accepted, AnalysisRequest, Completed, ModelState, Progress, Usage
from lensd_server.engine.observers import BatchRecord
from lensd_server.engine.tracing import CURRENT_SPAN
from lensd_server.telemetry.tracing import Tracing


class Recorded:
    """Tracing whose spans stay here."""

    def __init__(self, sampler: Any = None) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing(provider.get_tracer("test"))

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]

    def span(self, name: str) -> ReadableSpan:
        (span,) = self.spans(name)
        return span


@pytest.fixture
def recorded() -> Recorded:
    return Recorded()


REQUEST = AnalysisRequest("r1", "dla", model="tiny")
ACCEPTED = Accepted("dla", "1.0", "lensd-dla", "tiny", ModelState.RESIDENT, "rev", 0)
COMPLETED = Completed("rev", Usage(total_s=0.5, rows=2, tokens=7))


def test_a_request_has_its_phases_as_children_one_after_another(recorded: Recorded) -> None:
    with recorded.tracing.request(REQUEST) as traced:
        traced.saw(ACCEPTED)
        traced.saw(Progress(stage="load", done=0.5, total=1.0, unit="read"))
        traced.saw(Progress(stage="running", done=0.0, total=0.0, unit=""))
        with traced.sending():
            pass
        traced.saw(COMPLETED)
    request = recorded.span("lensd.analysis")
    assert request.attributes is not None
    assert request.attributes["lensd.request_id"] == "r1"
    assert request.attributes["lensd.tokens"] == 7
    assert request.status.is_ok
    assert request.context is not None
    for name in ("lensd.admission", "lensd.load", "lensd.stream"):
        child = recorded.span(name)
        assert child.parent is not None
        assert child.parent.span_id == request.context.span_id
        assert request.start_time <= child.start_time <= child.end_time <= request.end_time
    assert len(recorded.spans("lensd.analyzer")) == 2, "before the load and after it"
    assert recorded.span("lensd.admission").end_time <= recorded.span("lensd.load").start_time


def test_a_failure_is_the_spans_status_with_its_reason_and_no_text(recorded: Recorded) -> None:
    with pytest.raises(InvalidParams):
        with recorded.tracing.request(REQUEST):
            raise InvalidParams("the prompt says: my secret")
    request = recorded.span("lensd.analysis")
    assert (request.status.is_ok, request.status.description) == (False, "INVALID_PARAMS")
    assert "secret" not in request.to_json()


def test_requests_of_one_batch_are_linked_to_each_other(recorded: Recorded) -> None:
    with recorded.tracing.request(REQUEST):
        first = CURRENT_SPAN.get()
    with recorded.tracing.request(AnalysisRequest("r2", "dla", model="tiny")):
        second = CURRENT_SPAN.get()
    assert first is not second
    traced = ((first, 0.25), (first, 0.5), (second, 0.0))
    recorded.tracing.batch_ran(BatchRecord("tiny", 3, 21, 24, 0.125, traced=traced))
    batches = {span.context.trace_id: span for span in recorded.spans("lensd.batch") if span.context}
    for own, other in ((first, second), (second, first)):
        batch = batches[own.get_span_context().trace_id]
        assert [link.context.span_id for link in batch.links] == [other.get_span_context().span_id]
        assert batch.end_time - batch.start_time == pytest.approx(125e6, abs=1e3)
    queues = {span.context.trace_id: span for span in recorded.spans("lensd.queue") if span.context}
    waited = queues[first.get_span_context().trace_id]
    assert waited.end_time - waited.start_time == pytest.approx(500e6, abs=1e3), "the row that waited longest"


def test_what_is_not_sampled_costs_the_engine_nothing() -> None:
    recorded = Recorded(ParentBased(TraceIdRatioBased(0.0)))
    with recorded.tracing.request(REQUEST):
        assert CURRENT_SPAN.get() is None
    assert recorded.exporter.get_finished_spans() == ()


def test_without_tracing_nothing_of_it_is_imported() -> None:
    code = (
        "import sys\nimport lensd_server.app\n"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry')]\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


async def test_a_call_over_grpc_continues_its_callers_trace(recorded: Recorded) -> None:
    seen: list[Any] = []

    async def handle(raw: bytes, context: Any) -> bytes:
        with recorded.tracing.request(REQUEST):
            seen.append(CURRENT_SPAN.get())
        return b""

    server = grpc.aio.server(interceptors=[recorded.tracing.interceptor()])
    handlers = {"Call": grpc.unary_unary_rpc_method_handler(handle)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    caller = "0af7651916cd43dd8448eb211c80319c"
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/test.Service/Call")
        await call(b"", metadata=[("traceparent", f"00-{caller}-b7ad6b7169203331-01")])
        await call(b"")
    await server.stop(None)
    first, second = recorded.spans("lensd.analysis")
    assert first.parent is not None
    assert (format(first.context.trace_id, "032x"), format(first.parent.span_id, "016x")) == (
        caller,
        "b7ad6b7169203331",
    )
    assert second.parent is None
    assert second.context.trace_id != first.context.trace_id
