"""How much memory there is for models, where, and when it is really free."""

import asyncio
from typing import Any

import pytest

from lensd_api import Exhausted, FailedPrecondition, LoadFailed
from lensd_server.engine.events import ModelState
from server.core.tests.engine.runtime.bounded import (
    Clock,
    FakeDevices,
    Make,
    state,
    until,
)


async def test_each_model_goes_where_there_is_most_room(make: Make) -> None:
    bounded = make(
        sizes={"a": 60, "b": 60, "c": 30}, devices=FakeDevices("cuda:0", "cuda:1"), budget={"cuda": 100}
    )
    for name in "abc":
        await bounded.use(name)
    places = {name: bounded.residency.status(name).device for name in "abc"}
    assert {places["a"], places["b"]} == {"cuda:0", "cuda:1"}
    assert not bounded.noting.evictions


async def test_budgets_are_by_device(make: Make) -> None:
    bounded = make(
        sizes={"a": 80},
        devices=FakeDevices("cpu", "cuda:0"),
        budget={"cpu": 50, "cuda:0": 100},
        on={"a": "auto"},
    )
    await bounded.use("a")
    assert bounded.residency.status("a").device == "cuda:0"
    assert [(m.device, m.budget, m.reserved) for m in bounded.residency.memory()] == [
        ("cpu", 50, 0),
        ("cuda:0", 100, 80),
    ]


async def test_keys_and_values_count_in_what_a_model_needs_and_the_refusal_names_them(make: Make) -> None:
    bounded = make(sizes={"a": 60, "b": 60, "c": 60}, caches={"a": 40, "b": 0, "c": 91})
    await bounded.use("a")
    assert bounded.residency.status("a").reserved_bytes == 100
    await bounded.use("b")
    assert state(bounded, "a") is ModelState.COLD, "60 + 40 + 60 are more than 150"
    with pytest.raises(
        FailedPrecondition,
        match=r"needs 151 bytes on cpu, 91 of them .*models\.c\.max_cache_bytes.* have 150",
    ):
        await bounded.use("c")


@pytest.mark.parametrize(("budget", "kept"), [(400, 50), (8000, 1000), (80_000, 1000), (None, 1000)], ids=str)
async def test_keys_and_values_take_at_most_an_eighth_of_a_budget_unless_configured(
    make: Make, budget: int | None, kept: int
) -> None:
    devices = FakeDevices("cpu")
    devices.cache_bytes = 1000
    bounded = make(sizes={"a": 100}, devices=devices, budget=budget)
    async with bounded.residency.lease("a") as model:
        assert bounded.residency.status("a").reserved_bytes == 100 + kept
        assert model.batcher._limits.max_cache_bytes == kept, "what is set aside is what is kept at most"


async def test_without_a_budget_what_is_free_is_measured(make: Make) -> None:
    mib = 1024 * 1024
    devices = FakeDevices("cpu", size=1000 * mib)
    bounded = make(sizes={"a": 400 * mib, "b": 400 * mib, "c": 745 * mib}, devices=devices, budget=None)
    assert [memory.budget for memory in bounded.residency.memory()] == [744 * mib]
    await bounded.use("a")
    await bounded.use("b")
    assert bounded.noting.evictions == {("a", "idle"): 1}
    with pytest.raises(FailedPrecondition, match=str(745 * mib)):
        await bounded.use("c")


async def test_memory_that_others_use_is_not_promised(make: Make) -> None:
    clock = Clock()
    devices = FakeDevices("cpu", size=300, others={"cpu": 250})
    bounded = make(devices=devices, budget=200, clock=clock)
    with pytest.raises(LoadFailed, match="used by something else") as refused:
        await bounded.use("a")
    assert refused.value.reason == "NO_MEMORY"
    devices.others["cpu"] = 0
    clock.now += 60
    await bounded.use("a")


async def test_the_next_load_waits_until_the_weights_are_really_gone(make: Make) -> None:
    bounded = make()
    hoard: list[Any] = []
    bounded.loader.hoard = hoard
    await bounded.use("a")
    bounded.loader.hoard = None
    wanting = asyncio.ensure_future(bounded.use("b"))
    await until(lambda: bounded.residency.status("b").detail == "memory to become free")
    assert bounded.loader.loads["b"] == 0
    hoard.clear()
    await wanting
    assert bounded.loader.peak["cpu"] == 100


async def test_memory_that_is_never_given_back_is_said_so(make: Make) -> None:
    clock = Clock()
    bounded = make(clock=clock)
    hoard: list[Any] = []
    bounded.loader.hoard = hoard
    await bounded.use("a")
    wanting = asyncio.ensure_future(bounded.use("b"))
    await until(lambda: bounded.residency.status("b").detail == "memory to become free")
    clock.now += 31
    with pytest.raises(Exhausted, match="something still holds"):
        await wanting
    hoard.clear()


async def test_a_wrong_prediction_is_corrected_and_counts_from_then_on(make: Make) -> None:
    bounded = make(sizes={"a": 60, "b": 60})
    bounded.loader.really["a"] = 100
    await bounded.use("a")
    assert bounded.residency.status("a").reserved_bytes == 100
    await bounded.use("b")
    assert bounded.noting.evictions == {("a", "idle"): 1}
