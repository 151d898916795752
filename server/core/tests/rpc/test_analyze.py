"""One analysis a call: what the stream holds, and how it ends."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog

from lensd_api.errors import DeviceOutOfMemory, InvalidParams, InvalidResult, QueueFull
from lensd_api.results import Record, Table, Tensor
from lensd_proto.v1 import analysis_pb2
from lensd_server.engine.events import AnalysisEvent, AnalysisRequest, Found, Priority, Progress, Warned

Request = analysis_pb2.AnalyzeRequest
Refusal = Callable[[Any], Any]


async def test_events_come_in_order_and_add_up(served: Any) -> None:
    async def script(request: AnalysisRequest) -> AsyncIterator[AnalysisEvent]:
        yield Progress("forward", 1, 2, "rows")
        yield Warned("ODD", "look at this", "0")
        yield Found(Record("r", {"a": 1}))
        yield Found(Tensor("t", [1.0, 2.0]))

    served.executor.scripts["a"] = script
    events = [e async for e in served.analysis.Analyze(Request(analyzer="a", model="tiny"))]
    kinds = [e.WhichOneof("event") for e in events]
    assert kinds == ["accepted", "progress", "warning", "result", "result", "completed"]
    assert [e.sequence for e in events] == list(range(6))
    assert len({e.request_id for e in events}) == 1
    accepted, completed = events[0].accepted, events[-1].completed
    assert (accepted.analyzer, accepted.model, accepted.distribution) == ("a", "tiny", "dist")
    assert (completed.events, completed.results, completed.warnings) == (6, 2, 1)
    assert len(completed.checksums) == 1


async def test_what_the_caller_sends_reaches_the_engine(served: Any) -> None:
    served.executor.yields("a")
    request = Request(request_id="r-1", analyzer="dist:a", model="tiny", priority="PRIORITY_BATCH")
    request.params.update({"n": 5, "deep": {"list": [1.5, None, "x"]}})
    tensor = request.tensors["d"]
    tensor.dtype, tensor.data = 3, b"\0\0\x80\x3f"  # float32 1.0
    tensor.shape.append(1)
    request.timeout.FromSeconds(30)
    served.executor.yields("dist:a")
    before = time.monotonic()
    events = [e async for e in served.analysis.Analyze(request, timeout=60)]
    assert {e.request_id for e in events} == {"r-1"}
    (seen,) = served.executor.requests
    assert (seen.analyzer, seen.model, seen.priority) == ("dist:a", "tiny", Priority.BATCH)
    assert seen.params == {"n": 5, "deep": {"list": [1.5, None, "x"]}}
    assert seen.tensors["d"].tolist() == [1.0]
    assert before + 29 < seen.deadline < time.monotonic() + 30
    assert "127.0.0.1" in seen.peer


async def test_the_calls_own_deadline_counts_when_it_is_earlier(served: Any) -> None:
    served.executor.yields("a")
    request = Request(analyzer="a")
    request.timeout.FromSeconds(300)
    async for _ in served.analysis.Analyze(request, timeout=10):
        pass
    assert served.executor.requests[0].deadline < time.monotonic() + 11


async def test_without_any_deadline_there_is_none(served: Any) -> None:
    served.executor.yields("a")
    async for _ in served.analysis.Analyze(Request(analyzer="a")):
        pass
    assert served.executor.requests[0].deadline is None


async def test_a_client_that_goes_away_closes_the_analysis(served: Any) -> None:
    served.executor.waits("a")
    call = served.analysis.Analyze(Request(analyzer="a", request_id="gone"))
    assert (await call.read()).HasField("accepted")
    call.cancel()
    await asyncio.wait_for(served.executor.ended["gone"].wait(), 10)
    await asyncio.wait_for(served.gate.empty(), 10)


async def test_a_deadline_of_the_call_closes_the_analysis(served: Any) -> None:
    served.executor.waits("a")
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in served.analysis.Analyze(Request(analyzer="a", request_id="late"), timeout=0.5):
            pass
    assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(served.executor.ended["late"].wait(), 10)


async def test_results_are_written_as_fast_as_they_are_read(served: Any) -> None:
    made = 0

    async def script(request: AnalysisRequest) -> AsyncIterator[AnalysisEvent]:
        nonlocal made
        for _ in range(500):
            made += 1
            yield Found(Table("t", {"s": ["x" * 100_000] * 4}, last=False))
        yield Found(Table("t", {"s": ["end"]}))

    served.executor.scripts["a"] = script
    call = served.analysis.Analyze(Request(analyzer="a", request_id="slow"))
    await call.read()
    await call.read()
    # Flow control stops it long before the end; how far it runs ahead is gRPC's business.
    for _ in range(200):
        await asyncio.sleep(0)
    assert made < 250
    call.cancel()
    await asyncio.wait_for(served.executor.ended["slow"].wait(), 10)


async def test_an_error_before_the_first_event(served: Any, refusal: Refusal) -> None:
    served.executor.raises("a", InvalidParams.field("prompt", "is empty"))
    said = await refusal(served.analysis.Analyze(Request(analyzer="a")))
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_PARAMS")
    assert said.violations == {"prompt": "is empty"}


async def test_an_overload_tells_when_to_try_again_and_is_counted(served: Any, refusal: Refusal) -> None:
    served.executor.raises("a", QueueFull("full", retry_after_s=0.25))
    said = await refusal(served.analysis.Analyze(Request(analyzer="a")))
    assert said.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert said.trailing["grpc-retry-pushback-ms"] == "250"
    assert served.metrics.registry.get_sample_value("lensd_rejected_total", {"reason": "QUEUE_FULL"}) == 1


async def test_out_of_memory_is_a_status_of_its_own(served: Any, refusal: Refusal) -> None:
    served.executor.raises("a", DeviceOutOfMemory("too much"))
    said = await refusal(served.analysis.Analyze(Request(analyzer="a")))
    assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "DEVICE_OOM")


async def test_the_text_of_a_foreign_exception_stays_in_the_log(served: Any, refusal: Refusal) -> None:
    served.executor.raises("a", RuntimeError("a secret"))
    with structlog.testing.capture_logs() as logs:
        said = await refusal(served.analysis.Analyze(Request(analyzer="a")))
    assert said.code is grpc.StatusCode.INTERNAL
    assert "secret" not in str(said.status)
    assert any(log.get("error_id") == said.metadata["error_id"] for log in logs)


async def test_a_cancellation_from_below_ends_the_call(served: Any, refusal: Refusal) -> None:
    served.executor.raises("a", asyncio.CancelledError())
    said = await refusal(served.analysis.Analyze(Request(analyzer="a"), timeout=30))
    assert said.code is grpc.StatusCode.CANCELLED


async def test_a_result_nobody_could_read_is_named(served: Any, refusal: Refusal) -> None:
    served.executor.raises("a", InvalidResult("result 't': column 'x' ...", metadata={"result": "'t'"}))
    said = await refusal(served.analysis.Analyze(Request(analyzer="a")))
    assert (said.code, said.reason) == (grpc.StatusCode.INTERNAL, "INVALID_RESULT")
    assert said.metadata == {"result": "'t'"}


async def test_a_draining_server_lets_the_running_finish_and_nothing_in(
    served: Any, refusal: Refusal
) -> None:
    release = served.executor.waits("a")
    call = served.analysis.Analyze(Request(analyzer="a"))
    await call.read()
    served.gate.close()
    said = await refusal(served.analysis.Analyze(Request(analyzer="a")))
    assert (said.code, said.reason) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
    assert said.trailing["grpc-retry-pushback-ms"] == "-1"  # a retry of gRPC would come back here
    release.set()
    assert (await call.read()).HasField("completed")


async def test_large_requests_and_results_are_worked_on_beside_the_loop(
    served: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading

    from lensd_server.rpc import tables, wire

    threads: dict[str, int] = {}

    def remembered(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def seen(*args: Any, **kwargs: Any) -> Any:
            threads[name] = threading.get_ident()
            return call(*args, **kwargs)

        return seen

    monkeypatch.setattr(wire, "from_struct", remembered("params", wire.from_struct))
    monkeypatch.setattr(tables, "_cuts", remembered("table", tables._cuts))
    for size, here in ((3, True), (60_000, False)):
        request = Request(analyzer="a")
        request.params["s"] = ["x"] * size
        served.executor.yields("a", Table("t", {"n": list(range(size))}))
        events = [e async for e in served.analysis.Analyze(request)]
        assert (
            sum(len(e.result.table.columns[0].integers.values) for e in events if e.HasField("result"))
            == size
        )
        assert {ident == threading.get_ident() for ident in threads.values()} == {here}
        assert set(threads) == {"params", "table"}


async def test_the_time_to_the_first_result_is_measured(served: Any) -> None:
    served.executor.yields("a", Record("r", {}), Record("s", {}))
    async for _ in served.analysis.Analyze(Request(analyzer="a", model="tiny")):
        pass
    labels = {"analyzer": "a", "model": "tiny"}
    value = served.metrics.registry.get_sample_value
    assert value("lensd_analysis_first_result_seconds_count", labels) == 1
