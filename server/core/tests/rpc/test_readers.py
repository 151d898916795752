"""Callers who do not read, or were never going to: what they hold is bounded, and others are served."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, suppress
from typing import Any

import grpc
import grpc.aio
import pytest

from lensd_api.results import Table
from lensd_proto.v1 import analysis_pb2
from lensd_server.engine.events import AnalysisEvent, AnalysisRequest, Found
from lensd_server.settings import LimitSettings

Request = analysis_pb2.AnalyzeRequest
Refusal = Callable[[Any], Any]
PATIENCE_S = 60


@pytest.fixture
def limits() -> LimitSettings:
    """Little patience, few streams."""
    return LimitSettings(send_timeout_s=0.2, max_streams_per_caller=3)


def floods(served: Any) -> None:
    """Makes ``flood`` an analyzer with more to say than any buffer holds."""

    async def script(request: AnalysisRequest) -> AsyncIterator[AnalysisEvent]:
        for _ in range(2000):
            yield Found(Table("t", {"s": ["x" * 100_000] * 4}, last=False))
        yield Found(Table("t", {"s": ["end"]}))

    served.executor.scripts["flood"] = script


def rejected(served: Any, reason: str) -> float | None:
    return served.metrics.registry.get_sample_value("lensd_rejected_total", {"reason": reason})


async def outcome(call: Any) -> Any:
    """Reads to the end of ``call``; answers its code."""
    with suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    return await call.code()


async def ends(served: Any, request_id: str) -> None:
    ended = served.executor.ended.setdefault(request_id, asyncio.Event())
    await asyncio.wait_for(ended.wait(), PATIENCE_S)


async def test_a_client_that_stops_reading_is_given_up_and_told_so(served: Any) -> None:
    floods(served)
    call = served.analysis.Analyze(Request(analyzer="flood", request_id="slow"))
    await call.read()
    await ends(served, "slow")
    await asyncio.wait_for(served.gate.empty(), PATIENCE_S)
    assert rejected(served, "CLIENT_NOT_READING") == 1
    assert await outcome(call) is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "read nothing for 0.2 s" in await call.details()


async def test_all_analyses_of_an_unread_stream_are_given_up(served: Any) -> None:
    floods(served)
    call = served.analysis.AnalyzeMany()
    for name in ("one", "two"):
        start = Request(analyzer="flood", request_id=name)
        await call.write(analysis_pb2.AnalyzeManyRequest(start=start))
    await asyncio.gather(ends(served, "one"), ends(served, "two"))
    await asyncio.wait_for(served.gate.empty(), PATIENCE_S)
    assert rejected(served, "CLIENT_NOT_READING") == 1
    call.cancel()


async def test_a_slow_reader_that_reads_is_waited_for(served: Any) -> None:
    served.executor.yields("a", *(Table("t", {"s": ["x" * 100_000] * 4}, last=i == 29) for i in range(30)))
    call = served.analysis.Analyze(Request(analyzer="a"))
    kinds = []
    while (event := await call.read()) is not grpc.aio.EOF:
        kinds.append(event.WhichOneof("event"))
        await asyncio.sleep(0.01)
    assert kinds[-1] == "completed"


async def test_a_host_holds_only_so_many_streams(served: Any, refusal: Refusal) -> None:
    release = served.executor.waits("a")
    calls = [served.analysis.Analyze(Request(analyzer="a")) for _ in range(3)]
    for call in calls:
        await call.read()
    said = await refusal(served.analysis.Analyze(Request(analyzer="a")))
    assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_STREAMS")
    assert said.metadata == {"max_streams_per_caller": "3"}
    assert said.trailing["grpc-retry-pushback-ms"] == "1000"
    assert rejected(served, "TOO_MANY_STREAMS") == 1
    # Calls that are no streams are answered all the same.
    await served.stubs(served.public).models.ListModels(analysis_pb2.AnalyzeRequest())
    release.set()
    for call in calls:
        assert (await call.read()).HasField("completed")
        assert await call.code() is grpc.StatusCode.OK
    assert (await served.analysis.Analyze(Request(analyzer="a")).read()).HasField("accepted")


async def test_who_holds_too_many_is_told_to_wait_as_long_as_its_streams_last(
    served: Any, refusal: Refusal
) -> None:
    release = served.executor.waits("a")
    served.executor.yields("quick")
    calls = [served.analysis.Analyze(Request(analyzer="a")) for _ in range(2)]
    for call in calls:
        await call.read()
    quick = served.analysis.Analyze(Request(analyzer="quick"))
    assert await outcome(quick) is grpc.StatusCode.OK
    calls.append(served.analysis.Analyze(Request(analyzer="a")))
    await calls[-1].read()
    said = await refusal(served.analysis.Analyze(Request(analyzer="a")))
    assert said.reason == "TOO_MANY_STREAMS"
    assert int(said.trailing["grpc-retry-pushback-ms"]) < 1000
    release.set()
    for call in calls:
        assert await outcome(call) is grpc.StatusCode.OK


async def test_a_broken_off_stream_counts_until_its_bytes_have_left(served: Any, refusal: Refusal) -> None:
    floods(served)
    served.executor.yields("a")
    calls = [served.analysis.Analyze(Request(analyzer="flood", request_id=str(i))) for i in range(3)]
    for index, call in enumerate(calls):
        await call.read()
        await ends(served, str(index))
    said = await refusal(served.analysis.Analyze(Request(analyzer="a")))
    assert said.reason == "TOO_MANY_STREAMS"
    for call in calls:
        assert await outcome(call) is grpc.StatusCode.DEADLINE_EXCEEDED
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                assert (await served.analysis.Analyze(Request(analyzer="a")).read()).HasField("accepted")
                return
            except grpc.aio.AioRpcError:
                await asyncio.sleep(0)


async def test_a_client_that_vanishes_after_it_was_given_up_is_nothing_to_log(
    served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    floods(served)
    call = served.analysis.Analyze(Request(analyzer="flood", request_id="gone"))
    await call.read()
    await ends(served, "gone")
    call.cancel()
    async with asyncio.timeout(PATIENCE_S):
        while served.metrics.registry.get_sample_value(  # noqa: ASYNC110  # a gauge tells nobody
            "lensd_grpc_requests_in_flight", {"service": "lensd.v1.AnalysisService", "method": "Analyze"}
        ):
            await asyncio.sleep(0.01)
    assert caplog.records == []


async def test_a_client_that_vanishes_gives_its_stream_back(served: Any) -> None:
    served.executor.waits("a")
    for index in range(10):
        call = served.analysis.Analyze(Request(analyzer="a", request_id=f"v{index}"))
        await call.read()
        call.cancel()
        await ends(served, f"v{index}")
        await asyncio.wait_for(served.gate.empty(), PATIENCE_S)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 4096,
        b"\x16\x03\x01\x02\x00\x01",
        random.Random(0).randbytes(65536),
        b"",
    ],
    ids=["http/1.1", "broken frames", "tls", "noise", "nothing"],
)
@pytest.mark.parametrize("half_close", [True, False])
async def test_garbage_on_the_port_disturbs_nobody(served: Any, sent: bytes, half_close: bool) -> None:
    release = served.executor.waits("a")
    call = served.analysis.Analyze(Request(analyzer="a"))
    await call.read()
    with ExitStack() as sockets:
        for _ in range(20):
            connection = sockets.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            # The server may have hung up already.
            with suppress(OSError):
                await asyncio.to_thread(connection.sendall, sent)
                if half_close:
                    connection.shutdown(socket.SHUT_WR)
        other = served.analysis.Analyze(Request(analyzer="a", request_id="b"))
        assert (await other.read()).HasField("accepted")
        release.set()
        assert (await call.read()).HasField("completed")
