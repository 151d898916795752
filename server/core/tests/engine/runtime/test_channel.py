"""Events cross from the analysis to its reader, few at a time."""

import asyncio
import threading

import pytest

from lensd_api import Cancelled, Record, RequirementNotMet
from lensd_server.engine.channel import CAPACITY, Channel, Ended
from lensd_server.engine.events import Found, Progress


def found(number: int) -> Found:
    return Found(Record("r", {"n": number}))


async def test_events_arrive_in_order_from_another_thread() -> None:
    channel = Channel()

    def produce() -> None:
        for number in range(500):
            channel.put_blocking(found(number))
        channel.end()

    thread = threading.Thread(target=produce)
    thread.start()
    seen = []
    with pytest.raises(Ended):
        while True:
            seen.append(await channel.next(60))
    thread.join()
    assert seen == [found(number) for number in range(500)]


async def test_a_full_channel_makes_its_producer_wait() -> None:
    channel = Channel(capacity=2)
    await channel.put(found(0))
    await channel.put(found(1))
    waiting = asyncio.ensure_future(channel.put(found(2)))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await channel.next(60) == found(0)
    await waiting


async def test_a_channel_is_full_of_bytes_before_it_is_full_of_events() -> None:
    channel = Channel(capacity=100, capacity_bytes=1000)
    await channel.put(Found(Record("r", {}), 600))
    waiting = asyncio.ensure_future(channel.put(Found(Record("r", {}), 600)))
    await asyncio.sleep(0)
    assert not waiting.done()
    await channel.next(60)
    await waiting
    await channel.next(60)
    # One that is larger than all there is may wait alone, and holds up the next.
    await channel.put(Found(Record("r", {}), 5000))
    waiting = asyncio.ensure_future(channel.put(Found(Record("r", {}), 1)))
    await asyncio.sleep(0)
    assert not waiting.done()
    channel.close()
    await waiting


async def test_progress_never_waits_and_only_the_newest_is_kept() -> None:
    channel = Channel(capacity=1)
    await channel.put(found(0))
    for done in range(100):
        channel.put_now(Progress("s", done, 100, ""))
    assert await channel.next(60) == found(0)
    assert await channel.next(60) == Progress("s", 99, 100, "")
    assert await channel.next(0.001) is None


async def test_an_error_comes_after_what_was_queued() -> None:
    channel = Channel()
    await channel.put(found(0))
    channel.end(RequirementNotMet("no"))
    assert await channel.next(60) == found(0)
    with pytest.raises(RequirementNotMet):
        await channel.next(60)


async def test_an_abort_comes_first_and_frees_what_was_queued() -> None:
    channel = Channel()
    await channel.put(found(0))
    channel.abort(Cancelled("no"))
    channel.end()
    with pytest.raises(Cancelled):
        await channel.next(60)


@pytest.mark.parametrize("how", ["close", "abort"])
async def test_a_waiting_producer_is_let_go_when_the_channel_ends(how: str) -> None:
    channel = Channel(capacity=1)
    channel.put_blocking(found(0))
    thread = threading.Thread(target=channel.put_blocking, args=(found(1),))
    thread.start()
    waiting = asyncio.ensure_future(channel.put(found(2))) if how == "close" else None
    channel.close() if how == "close" else channel.abort(Cancelled("no"))
    await asyncio.to_thread(thread.join, 60)
    assert not thread.is_alive()
    if waiting is not None:
        await waiting


async def test_a_wake_up_that_comes_late_is_not_taken_for_the_end_of_patience() -> None:
    channel = Channel()
    # Each put posts a wake-up; the reader finds the event without needing it.
    for number in range(CAPACITY):
        await channel.put(found(number))
        assert await channel.next(60) == found(number)
    asyncio.get_running_loop().call_later(0.01, lambda: channel.put_blocking(found(-1)))
    assert await channel.next(60) == found(-1)
