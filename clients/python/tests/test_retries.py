"""Refused calls are tried again by this client's own hand, and every one of them ends."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

import lensd_client as L
from clients.python.tests.catalogue import Models
from lensd_client._retry import Attempts
from lensd_proto.v1 import analysis_pb2

#: Long enough that only a hang reaches it.
PATIENCE_S = 60.0

SERVER = Path(__file__).with_name("refusing_server.py")


class Refused(grpc.RpcError):
    """What gRPC raises, as far as a retry looks at it."""

    def __init__(self, code: grpc.StatusCode, pushback: str | None = None, details: str = "no") -> None:
        self._code, self._pushback, self._details = code, pushback, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details

    def trailing_metadata(self) -> Any:
        return () if self._pushback is None else (("grpc-retry-pushback-ms", self._pushback),)


FULL = Refused(grpc.StatusCode.RESOURCE_EXHAUSTED)


def test_pauses_double_within_a_fifth() -> None:
    attempts = Attempts(None)
    pauses = [attempts.pause_s(FULL) for _ in range(5)]
    assert pauses[-1] is None
    for pause, nominal in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=False):
        assert pause is not None
        assert 0.8 * nominal <= pause <= 1.2 * nominal


def test_the_servers_word_goes_before_the_clients_own() -> None:
    assert Attempts(None).pause_s(Refused(grpc.StatusCode.UNAVAILABLE, "1500")) == 1.5
    assert Attempts(None).pause_s(Refused(grpc.StatusCode.UNAVAILABLE, "-1")) is None
    assert Attempts(None).pause_s(Refused(grpc.StatusCode.UNAVAILABLE, "soon")) is None


def test_only_refusals_are_tried_again_and_only_before_the_first_message() -> None:
    assert Attempts(None).pause_s(Refused(grpc.StatusCode.INTERNAL)) is None
    attempts = Attempts(None)
    attempts.commit()
    assert attempts.pause_s(FULL) is None


def test_a_call_that_grpc_itself_cancelled_is_a_refusal_and_one_that_somebody_cancelled_is_none() -> None:
    assert Attempts(None).pause_s(Refused(grpc.StatusCode.CANCELLED)) is not None
    attempts = Attempts(None)
    attempts.commit()
    assert attempts.pause_s(Refused(grpc.StatusCode.CANCELLED)) is None
    for details in ("Locally cancelled by application!", "Stream removed (Channel closed!)"):
        assert Attempts(None).pause_s(Refused(grpc.StatusCode.CANCELLED, details=details)) is None


def test_attempts_share_one_deadline_and_no_pause_outlasts_it() -> None:
    now = 100.0
    attempts = Attempts(2.0, clock=lambda: now)
    assert attempts.left_s() == 2.0
    assert attempts.pause_s(Refused(grpc.StatusCode.UNAVAILABLE, "1500")) == 1.5
    now = 101.5
    assert attempts.left_s() == 0.5
    assert attempts.pause_s(Refused(grpc.StatusCode.UNAVAILABLE, "1500")) is None


@pytest.fixture
def refusing() -> Iterator[Any]:
    """A server process that refuses with a pushback of 0.2 s, and its address."""
    process = subprocess.Popen([sys.executable, str(SERVER), "200"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.target = f"127.0.0.1:{process.stdout.readline().strip()}"  # pyright: ignore[reportAttributeAccessIssue]
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_calls_end_when_the_server_is_killed_while_they_wait(refusing: Any) -> None:
    ends: list[L.LensdError] = []

    def call(lens: L.Client) -> None:
        try:
            lens.analyze("dla").finish()
        except L.LensdError as error:
            ends.append(error)

    with L.Client(refusing.target) as lens:
        threads = [threading.Thread(target=call, args=(lens,), daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert refusing.stdout.readline() == "refused\n"
        refusing.kill()
        for thread in threads:
            thread.join(PATIENCE_S)
        assert not any(thread.is_alive() for thread in threads)
    assert {type(error) for error in ends} <= {L.ServerUnavailable, L.ResourceExhausted}
    assert len(ends) == 4


async def test_async_calls_end_too(refusing: Any) -> None:
    async with L.AsyncClient(refusing.target) as lens:
        calls = [asyncio.create_task(lens.analyze("dla")) for _ in range(4)]
        for _ in calls:
            assert await asyncio.to_thread(refusing.stdout.readline) == "refused\n"
        refusing.kill()
        async with asyncio.timeout(PATIENCE_S):
            ends = await asyncio.gather(*calls, return_exceptions=True)
    assert {type(end) for end in ends} <= {L.ServerUnavailable, L.ResourceExhausted}


def test_a_call_that_waits_can_be_cancelled(fake: Any, new_script: Any) -> None:
    fake.play(new_script().abort(grpc.StatusCode.UNAVAILABLE, "not now", pushback_ms=3_600_000))
    with L.Client(fake.target) as lens:
        run = lens.analyze("dla")
        ends: list[Exception] = []

        def read() -> None:
            try:
                run.finish()
            except L.LensdError as error:
                ends.append(error)

        thread = threading.Thread(target=read)
        thread.start()
        assert fake.ended.wait(PATIENCE_S)
        run.cancel()
        thread.join(PATIENCE_S)
        assert [type(end) for end in ends] == [L.Cancelled]


async def test_an_async_call_that_waits_can_be_cancelled(fake: Any, new_script: Any) -> None:
    fake.play(new_script().abort(grpc.StatusCode.UNAVAILABLE, "not now", pushback_ms=3_600_000))
    async with L.AsyncClient(fake.target) as lens:
        run = lens.analyze("dla")
        waiting = asyncio.create_task(run)
        assert await asyncio.to_thread(fake.ended.wait, PATIENCE_S)
        run.cancel()
        with pytest.raises(L.Cancelled):
            await waiting


async def test_a_run_that_a_stopping_server_broke_off_before_its_first_event_is_tried_again(
    fake: Any, lens: L.Client, new_script: Any
) -> None:
    broken_off = new_script().abort(grpc.StatusCode.CANCELLED, "CANCELLED")
    done = new_script().accepted().completed()
    fake.play(broken_off, done, broken_off, done)
    assert (await asyncio.to_thread(lens.analyze("dla").finish)).is_finished
    async with L.AsyncClient(fake.target) as own:
        assert (await own.analyze("dla")).is_finished


async def test_a_run_that_was_broken_off_later_says_so(fake: Any, lens: L.Client, new_script: Any) -> None:
    broken_off = new_script().accepted().abort(grpc.StatusCode.CANCELLED, "CANCELLED")
    fake.play(broken_off, broken_off)
    with pytest.raises(L.ServerUnavailable, match="broke the call off"):
        await asyncio.to_thread(lens.analyze("dla").finish)
    async with L.AsyncClient(fake.target) as own:
        with pytest.raises(L.ServerUnavailable, match="broke the call off"):
            await own.analyze("dla")


def test_a_run_whose_client_is_closed_was_cancelled_by_it(fake: Any, new_script: Any) -> None:
    fake.play(new_script().accepted().hang())
    lens = L.Client(fake.target)
    run = lens.analyze("dla")
    next(run)
    lens.close()
    with pytest.raises(L.Cancelled, match="by this client"):
        run.finish()


def test_unary_calls_and_other_streams_are_tried_again(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = {"ListModels": 2, "WatchModels": 2}

    def is_refused(name: str, context: Any) -> None:
        if refusals[name]:
            refusals[name] -= 1
            context.set_trailing_metadata((("grpc-retry-pushback-ms", "1"),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

    list_models, watch_models = Models.ListModels, Models.WatchModels

    def listing(self: Any, message: Any, context: Any) -> Any:
        is_refused("ListModels", context)
        return list_models(self, message, context)

    def watching(self: Any, message: Any, context: Any) -> Any:
        is_refused("WatchModels", context)
        yield from watch_models(self, message, context)

    # Before the server is made, which binds them.
    monkeypatch.setattr(Models, "ListModels", listing)
    monkeypatch.setattr(Models, "WatchModels", watching)
    with L.Client(request.getfixturevalue("fake").target) as lens:
        assert lens.models()
        assert [m.state for m in lens.watch_models()] == ["loading", "resident"]
    assert refusals == {"ListModels": 0, "WatchModels": 0}


def test_what_a_stream_has_no_room_for_waits_instead_of_failing(
    fake: Any, lens: L.Client, new_script: Any, new_status: Any
) -> None:
    limit, offered = 3, 8
    full = new_status(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "full",
        reason="STREAM_FULL",
        metadata={"max_analyses_per_stream": str(limit)},
    )
    most = 0

    def handle(requests: Any, context: Any) -> Iterator[Any]:
        nonlocal most
        running: list[str] = []
        refused = 0
        for message in requests:
            name = message.start.request_id
            if len(running) < limit:
                running.append(name)
                most = max(most, len(running))
            else:
                refused += 1
                (step,) = new_script(name).failed(full).steps
                yield analysis_pb2.AnalyzeManyResponse(response=step)
            if refused == offered - limit:  # the client has sent all it wanted to
                while running:
                    done = new_script(running.pop(0)).accepted().record("r", {"n": 1}).completed()
                    yield from (analysis_pb2.AnalyzeManyResponse(response=step) for step in done.steps)

    fake.many = handle
    outcomes = list(lens.analyze_many([L.Request("dla")] * 10, max_in_flight=offered))
    assert [o.error for o in outcomes] == [None] * 10
    assert sorted(o.index for o in outcomes) == list(range(10))
    assert most == limit


async def test_a_stream_refused_before_its_first_message_is_opened_again(
    fake: Any, lens: L.Client, new_script: Any, new_status: Any
) -> None:
    refusals = 2

    def handle(requests: Any, context: Any) -> Iterator[Any]:
        nonlocal refusals
        if refusals:
            refusals -= 1
            context.set_trailing_metadata((("grpc-retry-pushback-ms", "1"),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many streams")
        for message in requests:
            done = new_script(message.start.request_id).accepted().record("r", {"n": 1}).completed()
            yield from (analysis_pb2.AnalyzeManyResponse(response=step) for step in done.steps)

    fake.many = handle
    outcomes = await asyncio.to_thread(
        lambda: list(lens.analyze_many([L.Request("dla")] * 4, max_in_flight=2))
    )
    assert [o.error for o in outcomes] == [None] * 4
    refusals = 2
    async with L.AsyncClient(fake.target) as own:
        again = [o async for o in own.analyze_many([L.Request("dla")] * 4, max_in_flight=2)]
    assert sorted(o.index for o in again) == [0, 1, 2, 3]
    assert [o.error for o in again] == [None] * 4


async def test_an_async_run_can_be_made_a_task_twice(fake: Any, new_script: Any) -> None:
    fake.play(new_script().accepted().record("r", {"n": 1}).completed())
    async with L.AsyncClient(fake.target) as lens:
        run = lens.analyze("dla")
        assert await asyncio.create_task(run) is run
        assert await asyncio.create_task(run) is run
        assert run["r"]["n"] == 1


@pytest.mark.parametrize("seconds", [1e12, float("inf"), float("nan"), 0, -1])
def test_a_timeout_that_would_overflow_is_refused_with_what_to_do(lens: L.Client, seconds: float) -> None:
    with pytest.raises(ValueError, match="leave it out"):
        lens.analyze("dla", timeout_s=seconds)
    with pytest.raises(ValueError, match="leave it out"):
        L.Client("127.0.0.1:1", timeout_s=seconds)


def test_a_very_long_timeout_is_a_timeout(fake: Any, lens: L.Client, new_script: Any) -> None:
    fake.play(new_script().accepted().completed())
    assert lens.analyze("dla", timeout_s=1e9).finish().is_finished
