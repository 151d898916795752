"""What is heard of an analysis that takes its time, and readers and threads that take theirs."""

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from lensd_api import (
    Record,
)
from lensd_server.engine.events import (
    Completed,
    Found,
    Progress,
    Warned,
)
from server.core.tests.engine.runtime.counting import (
    Count,
    Modelless,
    PlainCount,
    PlainModelless,
)


async def test_of_progress_the_newest_wins_and_warnings_all_count(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        for i in range(1000):
            ctx.progress(i, 1000, stage="s")
        ctx.warn("ODD", "look here", item="a")
        yield Record("r", {})

    stream = rig.start(Modelless(body))
    await anext(stream)
    await rig.settled()
    events = [event async for event in stream]
    assert [event.done for event in events if isinstance(event, Progress)] == [999]
    assert [event for event in events if isinstance(event, Warned)] == [Warned("ODD", "look here", "a")]


async def test_warnings_are_bounded(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        for i in range(5000):
            ctx.warn("ODD", str(i))
        yield Record("r", {})

    warned = [e for e in await rig.events(Modelless(body)) if isinstance(e, Warned)]
    assert len(warned) == 256
    assert warned[-1].reason == "TOO_MANY_WARNINGS"


async def test_a_silent_analysis_is_heard_of_again_and_again(make_rig: Any) -> None:
    rig = make_rig(heartbeat_s=0.01)
    go = asyncio.Event()
    loop = asyncio.get_running_loop()

    async def body(ctx: Any) -> AsyncIterator[Any]:
        ctx.progress(3, 4, stage="thinking")
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(go.wait(), loop))
        yield Record("r", {})

    repeated = 0
    async for event in rig.start(Modelless(body)):
        if isinstance(event, Progress) and event.stage == "thinking":
            repeated += 1
            if repeated == 3:
                go.set()
    assert repeated >= 3


async def test_one_that_waits_for_its_turn_says_so_again_and_again(make_rig: Any) -> None:
    rig = make_rig(heartbeat_s=0.01)
    await rig.events(PlainCount())
    stream, told = rig.start(PlainCount()), 0
    with rig.resident("llama").loaded.device.turn:  # somebody else has the device
        while told < 3:
            event = await anext(stream)
            told += isinstance(event, Progress) and event.stage == "queued" and event.total == 1
    assert isinstance([event async for event in stream][-1], Completed)


async def test_one_whose_model_is_loading_says_so_again_and_again(make_rig: Any, tiny: Any) -> None:
    go = threading.Event()

    class Slow:
        def load(self, name: str, settings: Any, report: Any, claim: Any) -> Any:
            report("read", 0.4)
            assert go.wait(60)
            return tiny("llama")

    rig = make_rig(loader=Slow(), heartbeat_s=0.01)
    stream, told = rig.start(Count()), 0
    while told < 3:
        event = await anext(stream)
        told += isinstance(event, Progress) and (event.stage, event.done) == ("load", 0.4)
    go.set()
    assert isinstance([event async for event in stream][-1], Completed)


async def test_a_slow_reader_holds_the_analyzer_up(rig: Any) -> None:
    made = []

    async def body(ctx: Any) -> AsyncIterator[Any]:
        for i in range(1000):
            made.append(i)
            yield Record("r", {"i": i}, item=str(i))

    stream = rig.start(Modelless(body))
    await anext(stream)
    await anext(stream)
    # Another analysis comes and goes on the same loop: the first has long filled its channel by then.
    for _ in range(3):
        await rig.results(Count())
    assert len(made) < 30
    assert sum(isinstance(event, Found) for event in [e async for e in stream]) == 999


async def test_a_slow_reader_holds_a_plain_analyzer_up(rig: Any) -> None:
    made: list[int] = []
    full = threading.Event()

    def body(ctx: Any) -> Iterator[Any]:
        for i in range(1000):
            made.append(i)
            if len(made) == 16:
                full.set()
            yield Record("r", {"i": i}, item=str(i))

    stream = rig.start(PlainModelless(body))  # pyright: ignore[reportArgumentType]
    await anext(stream)
    assert await asyncio.to_thread(full.wait, 60)
    for _ in range(3):
        await rig.results(Count())
    assert len(made) < 30
    assert sum(isinstance(event, Found) for event in [e async for e in stream]) == 1000


async def test_a_python_loop_on_a_thread_does_not_hold_others_up(rig: Any) -> None:
    """By order of events: the other analysis completes while the loop still runs."""
    stop = threading.Event()
    looping = threading.Event()

    def body(ctx: Any) -> Iterator[Any]:
        count = 0
        looping.set()
        while not stop.is_set():
            count += 1
        yield Record("r", {"count": count})

    await rig.events(Count())
    stream = rig.start(PlainModelless(body))  # pyright: ignore[reportArgumentType]
    await anext(stream)
    assert await asyncio.to_thread(looping.wait, 60)
    assert len(await rig.results(Count())) == 1
    assert len(await rig.results(PlainCount())) == 1
    assert not stop.is_set()
    stop.set()
    assert isinstance([event async for event in stream][-1], Completed)


async def test_a_looping_thread_gives_the_interpreter_up_every_millisecond(rig: Any) -> None:
    assert sys.getswitchinterval() == pytest.approx(0.001)
