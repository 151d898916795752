"""Many rows: bounded in flight, answered in order, nothing left behind."""

import asyncio
from collections.abc import AsyncGenerator, Iterator

import pytest

from lensd_shop_r1 import waves
from lensd_shop_r1.waves import in_order


class Gates:
    """Work that waits until it is let go; ``running`` says what is under way, ``read`` what was asked for."""

    def __init__(self, *sizes: int, refuse: int | None = None) -> None:
        self.sizes, self.refuse = sizes, refuse
        self.running: dict[int, asyncio.Event] = {}
        self.cancelled: list[int] = []
        self.read = 0

    def items(self) -> Iterator[int]:
        for number in range(len(self.sizes)):
            self.read += 1
            yield number

    async def work(self, number: int) -> int:
        gate = self.running[number] = asyncio.Event()
        try:
            await gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(number)
            raise
        if number == self.refuse:
            raise ValueError("refused for the test")
        return number

    def start(self) -> AsyncGenerator[int]:
        return in_order(self.items(), lambda number: self.sizes[number], self.work)


async def settle() -> None:
    """Lets every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_results_come_in_order_whatever_finishes_first() -> None:
    gates = Gates(1, 1, 1)
    found = gates.start()
    first = asyncio.ensure_future(anext(found))
    await settle()
    for number in (2, 1, 0):
        gates.running[number].set()
    assert [await first, *[number async for number in found]] == [0, 1, 2]


@pytest.mark.parametrize(("rows", "tokens"), [(2, 1000), (1000, 20)])
async def test_rows_and_tokens_in_flight_are_bounded(
    monkeypatch: pytest.MonkeyPatch, rows: int, tokens: int
) -> None:
    monkeypatch.setattr(waves, "MAX_ROWS", rows)
    monkeypatch.setattr(waves, "MAX_TOKENS", tokens)
    gates = Gates(*[10] * 100)
    found = gates.start()
    first = asyncio.ensure_future(anext(found))
    await settle()
    assert sorted(gates.running) == [0, 1]
    assert gates.read == 3  # one more is looked at, to know its size
    gates.running[0].set()
    await first
    second = asyncio.ensure_future(anext(found))
    await settle()
    assert sorted(gates.running) == [0, 1, 2]
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await found.aclose()


async def test_one_beyond_the_bound_runs_alone() -> None:
    gates = Gates(2 * waves.MAX_TOKENS, 1)
    found = gates.start()
    first = asyncio.ensure_future(anext(found))
    await settle()
    assert list(gates.running) == [0]
    gates.running[0].set()
    assert await first == 0
    await found.aclose()


async def test_closing_cancels_what_still_runs() -> None:
    gates = Gates(1, 1, 1)
    found = gates.start()
    first = asyncio.ensure_future(anext(found))
    await settle()
    gates.running[0].set()
    await first
    await found.aclose()
    assert gates.cancelled == [1, 2]


async def test_a_failure_ends_it_and_cancels_the_others() -> None:
    gates = Gates(1, 1, 1, refuse=0)
    found = gates.start()
    first = asyncio.ensure_future(anext(found))
    await settle()
    gates.running[0].set()
    with pytest.raises(ValueError, match="refused for the test"):
        await first
    assert gates.cancelled == [1, 2]


async def test_nothing_gives_nothing() -> None:
    assert [number async for number in Gates().start()] == []
