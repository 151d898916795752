"""Many analyses over one stream: neighbours never notice each other's end."""

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2

from lensd_api.errors import Draining, InvalidParams
from lensd_api.results import Record
from lensd_proto.v1 import analysis_pb2
from lensd_server.engine.events import AnalysisEvent, AnalysisRequest, Found
from lensd_server.rpc.dispatch import Call
from lensd_server.rpc.gate import Gate
from lensd_server.rpc.many import ManyAnalyses
from lensd_server.settings import LimitSettings

Many = analysis_pb2.AnalyzeManyRequest
Refusal = Callable[[Any], Any]


def start(request_id: str, analyzer: str = "ok") -> Many:
    return Many(start=analysis_pb2.AnalyzeRequest(request_id=request_id, analyzer=analyzer))


def cancel(request_id: str) -> Many:
    return Many(cancel=analysis_pb2.Cancel(request_id=request_id))


class Stream:
    """A stream that is read into one list a request."""

    def __init__(self, served: Any) -> None:
        self.call = served.analysis.AnalyzeMany()
        self.events: dict[str, list[analysis_pb2.AnalyzeResponse]] = {}

    async def send(self, *messages: Many) -> None:
        for message in messages:
            await self.call.write(message)

    async def until(self, request_id: str, kind: str) -> analysis_pb2.AnalyzeResponse:
        """Reads on until an event of that kind."""
        while True:
            for event in self.events.get(request_id, []):
                if event.WhichOneof("event") == kind:
                    return event
            await self._read()

    async def rest(self) -> None:
        """Says that no more comes and reads to the end."""
        await self.call.done_writing()
        while await self._read():
            pass

    async def _read(self) -> bool:
        message = await asyncio.wait_for(self.call.read(), 20)
        if message is grpc.aio.EOF:
            return False
        event = message.response
        self.events.setdefault(event.request_id, []).append(event)
        return True

    def kinds(self, request_id: str) -> list[str]:
        return [str(e.WhichOneof("event")) for e in self.events[request_id]]

    def sequences(self, request_id: str) -> list[int]:
        return [e.sequence for e in self.events[request_id]]


def reason(event: analysis_pb2.AnalyzeResponse) -> str:
    info = error_details_pb2.ErrorInfo()
    assert event.failed.status.details[0].Unpack(info)
    return info.reason


def retry_s(event: analysis_pb2.AnalyzeResponse) -> float:
    retry = error_details_pb2.RetryInfo()
    assert any(detail.Unpack(retry) for detail in event.failed.status.details)
    return retry.retry_delay.ToNanoseconds() / 1e9


@pytest.fixture
def stream(served: Any) -> Stream:
    """An open stream; the analyzer `ok` yields one record, `bad` fails, `slow` waits."""
    served.executor.yields("ok", Record("r", {}))
    served.executor.raises("bad", InvalidParams.field("prompt", "is empty"))
    served.release = served.executor.waits("slow")
    return Stream(served)


@pytest.fixture
def served(served: Any) -> Any:
    """Gives the shared fixture room for what a test adds."""

    class Roomy:
        release: asyncio.Event

        def __getattr__(self, name: str) -> Any:
            return getattr(served, name)

    return Roomy()


async def test_one_that_fails_leaves_its_neighbours_alone(served: Any, stream: Stream) -> None:
    await stream.send(start("1"), start("2", "bad"), start("3"))
    await stream.rest()
    assert stream.kinds("1") == stream.kinds("3") == ["accepted", "result", "completed"]
    assert stream.kinds("2") == ["accepted", "failed"]
    assert stream.sequences("2") == [0, 1]
    assert reason(stream.events["2"][-1]) == "INVALID_PARAMS"
    assert await stream.call.code() is grpc.StatusCode.OK


async def test_a_cancel_ends_one_and_the_rest_go_on(served: Any, stream: Stream) -> None:
    await stream.send(start("1", "slow"), start("2", "slow"))
    await stream.until("1", "accepted")
    await stream.until("2", "accepted")
    await stream.send(cancel("1"))
    failed = await stream.until("1", "failed")
    assert failed.failed.status.code == grpc.StatusCode.CANCELLED.value[0]
    assert stream.sequences("1") == [0, 1]
    assert served.executor.ended["1"].is_set()
    served.release.set()
    await stream.rest()
    assert stream.kinds("2") == ["accepted", "completed"]


async def test_a_cancel_of_something_unknown_is_ignored(stream: Stream) -> None:
    await stream.send(cancel("never"), start("1"))
    await stream.rest()
    assert stream.kinds("1")[-1] == "completed"


async def test_a_second_request_with_a_running_identifier_is_refused(served: Any, stream: Stream) -> None:
    await stream.send(start("1", "slow"))
    await stream.until("1", "accepted")
    await stream.send(start("1"))
    failed = await stream.until("1", "failed")
    assert reason(failed) == "DUPLICATE_REQUEST_ID"
    served.release.set()
    await stream.rest()
    assert stream.kinds("1") == ["accepted", "failed", "completed"]


async def test_an_identifier_is_free_again_once_its_analysis_is_over(stream: Stream) -> None:
    for _ in range(5):
        stream.events.clear()
        await stream.send(start("1"))
        await stream.until("1", "completed")
    await stream.rest()


async def test_a_request_without_an_identifier_is_refused(stream: Stream) -> None:
    await stream.send(start(""), start("1"))
    await stream.rest()
    assert stream.kinds("") == ["failed"]
    assert stream.kinds("1")[-1] == "completed"


async def test_more_than_the_stream_may_run_are_refused(served: Any, stream: Stream) -> None:
    await stream.send(*(start(str(i), "slow") for i in range(4)))
    failed = await stream.until("3", "failed")
    assert reason(failed) == "STREAM_FULL"
    assert retry_s(failed) == 1.0, "nothing is known yet"
    assert "3 analyses" in failed.failed.status.message
    served.release.set()
    await stream.rest()
    assert [stream.kinds(str(i))[-1] for i in range(3)] == ["completed"] * 3


async def test_how_soon_a_full_stream_takes_more_follows_how_long_its_analyses_took(
    served: Any, stream: Stream
) -> None:
    await stream.send(start("quick"))
    await stream.until("quick", "completed")
    await stream.send(*(start(str(i), "slow") for i in range(4)))
    assert 0 < retry_s(await stream.until("3", "failed")) < 1.0
    served.release.set()
    await stream.rest()


async def test_running_ones_finish_after_the_half_close(served: Any, stream: Stream) -> None:
    await stream.send(start("1", "slow"))
    await stream.until("1", "accepted")
    await stream.call.done_writing()
    served.release.set()
    await stream.until("1", "completed")
    assert await stream.call.read() is grpc.aio.EOF


async def test_a_client_that_goes_away_closes_them_all(served: Any, stream: Stream) -> None:
    await stream.send(start("1", "slow"), start("2", "slow"))
    await stream.until("1", "accepted")
    await stream.until("2", "accepted")
    stream.call.cancel()
    for request_id in ("1", "2"):
        await asyncio.wait_for(served.executor.ended[request_id].wait(), 10)
    await asyncio.wait_for(served.gate.empty(), 10)


async def test_a_message_without_an_action_ends_the_stream(served: Any, refusal: Refusal) -> None:
    call = served.analysis.AnalyzeMany()
    await call.write(Many())
    said = await refusal(call)
    assert said.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "action" in said.violations


async def test_malformed_bytes_end_the_stream_with_a_typed_status(served: Any, refusal: Refusal) -> None:
    call = served.public.stream_stream("/lensd.v1.AnalysisService/AnalyzeMany")()
    await call.write(b"\xff\xff\xff")
    said = await refusal(call)
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


async def test_an_idle_stream_does_not_hold_up_a_shutdown(served: Any, stream: Stream) -> None:
    await stream.send(start("1", "slow"))
    await stream.until("1", "accepted")
    served.gate.close()
    await stream.send(start("2"))
    assert reason(await stream.until("2", "failed")) == "DRAINING"
    served.release.set()
    await stream.until("1", "completed")
    with pytest.raises(grpc.aio.AioRpcError, match="shutting down") as ended:
        await stream.call.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_stream_that_is_not_read_stops_its_analyses(served: Any) -> None:
    made = 0

    async def script(request: AnalysisRequest) -> AsyncIterator[AnalysisEvent]:
        nonlocal made
        for index in range(500):
            made += 1
            yield Found(Record(f"r{index}", {"s": "x" * 400_000}))

    served.executor.scripts["big"] = script
    stream = Stream(served)
    await stream.send(start("1", "big"))
    await stream.until("1", "result")
    for _ in range(200):
        await asyncio.sleep(0)
    assert made < 250
    stream.call.cancel()
    await asyncio.wait_for(served.executor.ended["1"].wait(), 10)


_UNREAD = "ipv4:127.0.0.1:1"


class Unread:
    """A stream of at most two analyses whose client reads nothing before it is told to."""

    def __init__(self) -> None:
        self.sent: asyncio.Queue[Many] = asyncio.Queue()
        self.ran: list[str] = []
        self.taken = 0
        self.gate, call = Gate(), Call("/lensd.v1.AnalysisService/AnalyzeMany", _UNREAD, None)
        many = ManyAnalyses(self._respond, LimitSettings(max_analyses_per_stream=2), self.gate, call)
        self.responses = many.run(self._messages())

    async def begin(self) -> None:
        """The stream runs from its first message on, which is read."""
        self.sent.put_nowait(start("first"))
        await anext(self.responses)

    async def send(self, *messages: Many) -> None:
        """Each when nothing more happens because of the one before."""
        for message in messages:
            self.sent.put_nowait(message)
            for _ in range(20):
                await asyncio.sleep(0)

    async def read(self, count: int) -> dict[str, analysis_pb2.AnalyzeResponse]:
        """The next messages by request."""
        read = [await asyncio.wait_for(anext(self.responses), 20) for _ in range(count)]
        return {event.request_id: event for event in read}

    async def _messages(self) -> AsyncIterator[Many]:
        while True:
            message = await self.sent.get()
            self.taken += 1
            yield message

    async def _respond(self, request: AnalysisRequest) -> AsyncGenerator[analysis_pb2.AnalyzeResponse]:
        self.ran.append(request.request_id)
        if request.analyzer == "bad":
            raise InvalidParams.field("prompt", "is empty")
        yield analysis_pb2.AnalyzeResponse(request_id=request.request_id, completed=analysis_pb2.Completed())


@pytest.fixture
async def unread() -> AsyncIterator[Unread]:
    """A stream that has begun; the analyzer `bad` fails."""
    unread = Unread()
    await unread.begin()
    yield unread
    await unread.responses.aclose()


@pytest.mark.parametrize("analyzer", ["ok", "bad"])
async def test_what_is_held_for_a_client_that_does_not_read_is_bounded(unread: Unread, analyzer: str) -> None:
    await unread.send(*(start(str(index), analyzer) for index in range(100)))
    assert unread.taken < 20
    gc.collect()
    requests = [found for found in gc.get_objects() if type(found) is AnalysisRequest]
    assert not [request.request_id for request in requests if request.peer == _UNREAD]


async def test_all_of_them_are_answered_once_it_reads(unread: Unread) -> None:
    await unread.send(*(start(str(index), ("ok", "bad")[index % 2]) for index in range(100)))
    said = await unread.read(100)
    kinds = [str(said[str(index)].WhichOneof("event")) for index in range(100)]
    assert kinds == ["completed", "failed"] * 50


async def test_a_shutdown_waits_until_what_was_answered_is_read(unread: Unread) -> None:
    await unread.send(*(start(str(index)) for index in range(10)))
    unread.gate.close()
    for _ in range(20):
        await asyncio.sleep(0)
    assert unread.gate.inside == 0
    assert not unread.gate.is_empty
    assert len(await unread.read(10)) == 10
    with pytest.raises(Draining):
        await anext(unread.responses)
    assert unread.gate.is_empty


async def test_a_start_that_waits_for_its_client_to_read_can_be_cancelled(unread: Unread) -> None:
    # As many as may wait to be sent, and twice as many as may run.
    await unread.send(*(start(str(index)) for index in range(12)))
    await unread.send(start("waits"), cancel("waits"))
    assert unread.sent.empty()
    assert reason((await unread.read(13))["waits"]) == "CANCELLED"
    await unread.send(start("waits"))
    assert (await unread.read(1))["waits"].HasField("completed")
    assert unread.ran == ["first", *map(str, range(12)), "waits"]
