"""Everybody at once, whatever they do: nobody waits for ever and nothing is left."""

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest

from lensd_api import LensdError, LoadFailed
from lensd_server.engine.events import ModelState
from server.core.tests.engine.runtime.bounded import (
    PATIENCE_S,
    Make,
)


@pytest.mark.parametrize("seed", range(4))
async def test_five_hundred_requests_alternate_in_a_budget_for_one_and_a_half(make: Make, seed: int) -> None:
    bounded = make()
    chance = random.Random(seed)
    served = 0

    async def caller(first: int) -> None:
        nonlocal served
        for turn in range(20):
            await bounded.use("ab"[(first + turn) % 2], turns=chance.randrange(4))
            served += 1

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(caller(number) for number in range(25)))
    assert served == 500
    assert bounded.loader.peak["cpu"] == 100, "never both at once"
    evictions = sum(bounded.noting.evictions.values())
    assert evictions == sum(bounded.loader.loads.values()) - 1
    assert 2 <= evictions < 100, "whoever waits is served together"
    assert [bounded.residency.leases(name) for name in "ab"] == [0, 0]


@pytest.mark.parametrize("replicas", [{}, {"c": 2, "d": 3}], ids=["one each", "replicas"])
@pytest.mark.parametrize("seed", range(6))
async def test_whatever_callers_and_loads_do_everybody_ends_and_nothing_is_left(
    make: Make, seed: int, replicas: dict[str, int]
) -> None:
    sizes = {"a": 100, "b": 90, "c": 60, "d": 40, "p": 30}
    bounded = make(sizes=sizes, pinned=("p",), budget=160, replicas=replicas)
    chance = random.Random(seed)

    async def caller(number: int) -> None:
        for _ in range(12):
            name = chance.choice("abcdp")
            dice = chance.random()
            if dice < 0.1:
                bounded.loader.faults[name] = chance.choice(
                    [LoadFailed("no"), MemoryError(), OSError("disk")]
                )
            if dice < 0.75:
                task = asyncio.ensure_future(bounded.use(name, turns=chance.randrange(5)))
            elif dice < 0.9:
                task = asyncio.ensure_future(drain(bounded.residency.load(name)))
            else:
                task = asyncio.ensure_future(bounded.residency.unload(name))
            if chance.random() < 0.3:
                for _ in range(chance.randrange(6)):
                    await asyncio.sleep(0)
                task.cancel()
            with suppress(LensdError, asyncio.CancelledError):
                await task

    async def drain(steps: Any) -> None:
        async for _ in steps:
            pass

    async with asyncio.timeout(PATIENCE_S):
        await asyncio.gather(*(caller(number) for number in range(16)))
        for name in sizes:
            await bounded.residency.unload(name)
    assert bounded.loader.peak["cpu"] <= 160
    assert [bounded.residency.status(name).state for name in sizes] == [ModelState.COLD] * len(sizes)
    assert [bounded.residency.leases(name) for name in sizes] == [0] * len(sizes)
    assert [bounded.residency.status(name).waiting for name in sizes] == [0] * len(sizes)
    assert [memory.reserved for memory in bounded.residency.memory()] == [0]
    assert bounded.devices.in_use["cpu"] == 0
