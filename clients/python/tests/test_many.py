"""Many analyses over one stream: outcomes, failures of one, what is in flight."""

import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

import lensd_client as L
from lensd_proto.v1 import analysis_pb2


def _answers(script: Any) -> Iterator[analysis_pb2.AnalyzeManyResponse]:
    for step in script.steps:
        yield analysis_pb2.AnalyzeManyResponse(response=step)


class _Echo:
    """Answers a batch of ``size`` starts together, so that exactly so many are in flight."""

    def __init__(self, new_script: Any, new_status: Any, size: int) -> None:
        self.new_script, self.new_status, self.size = new_script, new_status, size
        self.batches: list[int] = []
        self.cancels: list[str] = []

    def __call__(self, requests: Any, context: Any) -> Iterator[Any]:
        waiting: list[Any] = []
        for message in requests:
            if message.WhichOneof("action") == "cancel":
                self.cancels.append(message.cancel.request_id)
                continue
            waiting.append(message.start)
            if len(waiting) == self.size:
                self.batches.append(len(waiting))
                for start in reversed(waiting):
                    yield from _answers(self.script(start))
                waiting = []
        assert not waiting

    def script(self, start: Any) -> Any:
        script = self.new_script(start.request_id)
        n = start.params.fields["n"].number_value
        if start.analyzer == "bad":
            status = self.new_status(grpc.StatusCode.NOT_FOUND, "no such analyzer", reason="UNKNOWN_ANALYZER")
            return script.failed(status)
        script.accepted()
        if start.analyzer == "broken":
            return script.record("r", {}).completed(results=7)
        return script.record("r", {"n": n}).completed()


@pytest.fixture
def echo(fake: Any, new_script: Any, new_status: Any) -> _Echo:
    fake.many = _Echo(new_script, new_status, 2)
    return fake.many


def test_outcomes_come_as_they_end_with_their_request(lens: L.Client, echo: _Echo) -> None:
    requests = [L.Request("dla", params={"n": n}) for n in range(6)]
    outcomes = list(lens.analyze_many(requests, max_in_flight=2))
    assert {o.index: o["r"]["n"] for o in outcomes} == {n: n for n in range(6)}
    assert all(o.request is requests[o.index] for o in outcomes)
    assert [o.index for o in outcomes] != sorted(o.index for o in outcomes)


def test_no_more_than_allowed_are_in_flight(lens: L.Client, echo: _Echo) -> None:
    read: list[int] = []

    def requests() -> Iterator[L.Request]:
        for n in range(8):
            read.append(n)
            yield L.Request("dla", params={"n": n})

    outcomes = lens.analyze_many(requests(), max_in_flight=2)
    next(outcomes)
    assert len(read) == 3
    assert len(list(outcomes)) == 7


def test_one_that_fails_leaves_the_others_alone(lens: L.Client, echo: _Echo) -> None:
    requests = [L.Request("bad" if n == 1 else "dla", params={"n": n}) for n in range(4)]
    outcomes = {o.index: o for o in lens.analyze_many(requests, max_in_flight=2)}
    assert isinstance(outcomes[1].error, L.NotFound)
    assert outcomes[1].error.reason == "UNKNOWN_ANALYZER"
    with pytest.raises(L.NotFound):
        outcomes[1].results()
    assert [outcomes[n]["r"]["n"] for n in (0, 2, 3)] == [0, 2, 3]


def test_a_broken_stream_of_one_is_its_own_error_and_is_cancelled(lens: L.Client, echo: _Echo) -> None:
    requests = [L.Request("broken", request_id="bad-one"), L.Request("dla", params={"n": 1})]
    outcomes = {o.index: o for o in lens.analyze_many(requests, max_in_flight=2)}
    assert isinstance(outcomes[0].error, L.MissingPart)
    assert outcomes[1]["r"]["n"] == 1
    assert echo.cancels == ["bad-one"]


def test_no_requests_give_no_outcomes(lens: L.Client, echo: _Echo) -> None:
    assert list(lens.analyze_many([])) == []


def test_a_stream_that_ends_early_raises(fake: Any, lens: L.Client, new_script: Any) -> None:
    def only_one(requests: Any, context: Any) -> Iterator[Any]:
        yield from _answers(new_script(next(requests).start.request_id).accepted())

    fake.many = only_one
    with pytest.raises(L.TruncatedStream, match="1 analyses"):
        list(lens.analyze_many([L.Request("dla")]))


def test_leaving_the_loop_ends_the_stream(fake: Any, lens: L.Client, new_script: Any) -> None:
    gone = threading.Event()

    def one_then_wait(requests: Any, context: Any) -> Iterator[Any]:
        context.add_callback(gone.set)
        yield from _answers(new_script(next(requests).start.request_id).accepted().completed())
        gone.wait(30)

    fake.many = one_then_wait
    outcomes = lens.analyze_many([L.Request("dla"), L.Request("dla")])
    next(outcomes)
    outcomes.close()  # pyright: ignore[reportAttributeAccessIssue]  # it is a generator
    assert gone.wait(10)


def test_two_running_with_one_id_are_refused(lens: L.Client, echo: _Echo) -> None:
    with pytest.raises(ValueError, match="'x' is running already"):
        list(lens.analyze_many([L.Request("dla", request_id="x"), L.Request("dla", request_id="x")]))
    with pytest.raises(ValueError, match="max_in_flight"):
        lens.analyze_many([], max_in_flight=0)


def test_timeouts_travel_with_each_request(fake: Any, lens: L.Client, new_script: Any) -> None:
    seen: list[float] = []

    def remember(requests: Any, context: Any) -> Iterator[Any]:
        for message in requests:
            seen.append(message.start.timeout.ToMilliseconds() / 1000)
            yield from _answers(new_script(message.start.request_id).accepted().completed())

    fake.many = remember
    list(lens.analyze_many([L.Request("dla", timeout_s=1.5)]))
    assert seen == [1.5]


async def test_async_outcomes_are_the_same(fake: Any, echo: _Echo) -> None:
    requests = [L.Request("bad" if n == 1 else "dla", params={"n": n}) for n in range(6)]
    async with L.AsyncClient(fake.target) as lens:
        outcomes = {o.index: o async for o in lens.analyze_many(requests, max_in_flight=2)}
    assert isinstance(outcomes.pop(1).error, L.NotFound)
    assert {n: o["r"]["n"] for n, o in outcomes.items()} == {0: 0, 2: 2, 3: 3, 4: 4, 5: 5}
