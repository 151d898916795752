"""Several replicas of one model."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import structlog
import torch

from lensd_api import Analyzer, BaseParams, Draining, LoadFailed, Record, Row
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.batching.turn import Turn
from lensd_server.engine.events import LoadStep, ModelState
from lensd_server.engine.handle import AsyncHandle
from lensd_server.engine.models.loads import ROOM_AGAIN_S
from lensd_server.engine.models.residency import Residency
from lensd_server.engine.models.slot import ResidentModel
from lensd_server.tiny_engine import TinyLoader
from server.core.tests.engine.runtime.bounded import Bounded, Clock, FakeDevices, Make, until
from server.core.tests.engine.runtime.conftest import RESIDUAL, on_cpu

GPUS = ("cuda:0", "cuda:1")


@pytest.fixture
def make() -> Iterator[Make]:
    """Builds a residency in which model ``a`` may have two replicas; two GPUs unless told otherwise."""
    made: list[Bounded] = []

    def build(**how: Any) -> Bounded:
        defaults: dict[str, Any] = {
            "sizes": {"a": 100},
            "budget": 150,
            "devices": FakeDevices(*GPUS),
            "replicas": {"a": 2},
        }
        made.append(Bounded(**{**defaults, **how}))
        return made[-1]

    yield build
    for bounded in made:
        bounded.close()


async def order(bounded: Bounded, name: str = "a") -> list[LoadStep]:
    return [step async for step in bounded.residency.load(name)]


def places(bounded: Bounded, name: str = "a") -> list[str]:
    """Where the resident replicas are, sorted."""
    return sorted(model.loaded.device.name for model in bounded.residency.residents(name))


def states(bounded: Bounded, name: str = "a") -> Counter[ModelState]:
    return Counter(replica.state for replica in bounded.residency.status(name).replicas)


async def both(bounded: Bounded) -> None:
    """Until both replicas of ``a`` are there."""
    await until(lambda: states(bounded) == {ModelState.RESIDENT: 2})


# Placing


async def test_an_order_brings_all_replicas_each_to_a_device_of_its_own(make: Make) -> None:
    bounded = make(budget=400)
    steps = await order(bounded)
    assert places(bounded) == list(GPUS)
    assert steps[-1].fraction == 1.0
    status = bounded.residency.status("a")
    assert (status.state, status.resident_bytes, status.reserved_bytes) == (ModelState.RESIDENT, 200, 200)
    assert sorted(replica.device for replica in status.replicas) == list(GPUS)


async def test_more_replicas_than_devices_spread_evenly_and_that_is_warned_of(make: Make) -> None:
    bounded = make(budget=400, replicas={"a": 4})
    with structlog.testing.capture_logs() as logs:
        await order(bounded)
    assert places(bounded) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]
    shared = [entry["device"] for entry in logs if entry["event"] == "replicas share a device"]
    assert sorted(shared) == list(GPUS)


async def test_a_device_that_is_too_small_is_none_to_go_to(make: Make) -> None:
    bounded = make(budget={"cuda:0": 250, "cuda:1": 50})
    await order(bounded)
    assert places(bounded) == ["cuda:0", "cuda:0"]


async def test_a_second_replica_goes_to_no_device_that_has_one_while_another_has_none(make: Make) -> None:
    bounded = make(sizes={"a": 100, "b": 100}, budget={"cuda:0": 400, "cuda:1": 150}, on={"b": "cuda:1"})
    await bounded.use("b")
    steps = await order(bounded)
    assert steps[-1].status.state is ModelState.RESIDENT
    assert places(bounded) == ["cuda:0"]
    (lacking,) = [r for r in bounded.residency.status("a").replicas if r.state is ModelState.COLD]
    assert "needs 100 bytes on cuda:1 and lacks 50" in lacking.problem
    assert places(bounded, "b") == ["cuda:1"], "nothing is evicted for one more replica"
    assert bounded.noting.outcomes == {("a", "ok"): 1, ("a", "cancelled"): 1, ("b", "ok"): 1}


# Coming on demand


async def test_the_first_request_loads_one_replica_and_requests_in_turn_no_other(make: Make) -> None:
    bounded = make()
    for _ in range(3):
        await bounded.use("a")
    assert bounded.loader.loads == {"a": 1}
    assert states(bounded) == {ModelState.RESIDENT: 1, ModelState.COLD: 1}


async def test_a_request_that_finds_all_replicas_in_use_is_served_and_loads_one_more(make: Make) -> None:
    bounded = make()
    async with bounded.residency.lease("a") as first:
        async with bounded.residency.lease("a") as second:
            assert second is first
        await both(bounded)
        async with bounded.residency.lease("a") as third:
            assert third is not first
    assert bounded.loader.loads == {"a": 2}


async def test_without_room_for_one_more_it_is_looked_for_again_after_a_while(make: Make) -> None:
    clock = Clock()
    bounded = make(
        sizes={"a": 100, "b": 100}, devices=FakeDevices("cpu"), budget=200, clock=clock, pinned=("b",)
    )
    await bounded.use("b")

    async def be_busy() -> None:
        async with bounded.residency.lease("a"), bounded.residency.lease("a"):
            await until(lambda: ModelState.LOADING not in states(bounded))

    await be_busy()
    await until(lambda: bounded.noting.outcomes["a", "cancelled"] == 1)
    await bounded.residency.unload("b")
    await be_busy()
    assert bounded.noting.outcomes == {("b", "ok"): 1, ("a", "ok"): 1, ("a", "cancelled"): 1}
    clock.now += ROOM_AGAIN_S + 1
    await be_busy()
    await both(bounded)


# Choosing


async def test_a_lease_takes_the_replica_with_the_fewest_leases_then_with_the_fewest_waiting_rows(
    make: Make,
) -> None:
    bounded = make(budget=400)
    await order(bounded)
    held: Counter[str] = Counter()
    async with AsyncExitStack() as leases:
        for _ in range(6):
            model = await leases.enter_async_context(bounded.residency.lease("a"))
            held[model.loaded.device.name] += 1
        assert held == {"cuda:0": 3, "cuda:1": 3}
        assert bounded.residency.leases("a") == bounded.residency.status("a").leases == 6
    first, second = bounded.residency.residents("a")
    first.batcher.waiting = lambda: (7, 70)
    async with bounded.residency.lease("a") as model:
        assert model is second
    assert bounded.residency.status("a").queued_rows == 7


class ThreeForwards(Analyzer):
    """Runs three rows, one after the other."""

    name = "three"

    class Params(BaseParams):
        pass

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Record]:
        for token in (1, 2, 3):
            await ctx.model.forward([Row((token,))], RESIDUAL)
        yield Record("done", {"rows": 3})


async def test_all_calls_of_an_analysis_go_to_the_replica_it_holds(make_rig: Any) -> None:
    rig = make_rig(loader=TinyLoader(Turn()), replicas=2)
    async for _ in rig.residency.load("llama"):
        pass
    asked: list[ResidentModel] = []
    for model in rig.residency.residents("llama"):
        submit = model.batcher.submit
        model.batcher.submit = lambda *calls, model=model, submit=submit: (
            asked.append(model),
            submit(*calls),
        )
    async with rig.residency.lease("llama") as taken:
        await rig.events(ThreeForwards())
    assert len(asked) == 3
    assert len({id(model) for model in asked}) == 1
    assert asked[0] is not taken


async def test_replicas_give_equal_results() -> None:
    models = {"llama": on_cpu("llama", replicas=3)}
    residency = Residency(models, TinyLoader(Turn()))
    try:
        async for _ in residency.load("llama"):
            pass
        found: list[Any] = []
        for model in residency.residents("llama"):
            handle = AsyncHandle(model.loaded.card, model.batcher, Ticket(analyzer="test"))
            found.append(await handle.logprobs([Row((5, 6, 7, 8))]))
        assert len({id(model.loaded.model.module) for model in residency.residents("llama")}) == 3
        for other in found[1:]:
            torch.testing.assert_close(other, found[0], rtol=0, atol=0)
    finally:
        await asyncio.to_thread(residency.close)


# Failing


async def test_a_replica_that_cannot_be_loaded_leaves_the_other_serving_and_is_tried_again(
    make: Make,
) -> None:
    clock = Clock()
    bounded = make(budget=400, clock=clock)
    await bounded.use("a")
    bounded.loader.faults["a"] = LoadFailed("the disk is on fire")
    steps = await order(bounded)
    assert steps[-1].status.state is ModelState.RESIDENT
    status = bounded.residency.status("a")
    assert (status.state, status.problem) == (ModelState.RESIDENT, "")
    assert [r.problem for r in status.replicas if r.state is ModelState.FAILED] == ["the disk is on fire"]

    async with bounded.residency.lease("a"), bounded.residency.lease("a"):
        assert bounded.loader.loads == {"a": 2}, "the back-off holds"
        clock.now += 3
        await bounded.use("a")
        await both(bounded)


async def test_who_waits_gets_the_replica_that_serves_first_when_another_fails(make: Make) -> None:
    bounded = make(budget=400)
    bounded.loader.held.add("a")
    bounded.loader.faults["a"] = LoadFailed("no")
    ordering = asyncio.ensure_future(order(bounded))
    await until(lambda: bounded.loader.loads["a"] == 2)
    using = asyncio.ensure_future(bounded.use("a"))
    await until(lambda: bounded.residency.status("a").waiting == 1)
    bounded.loader.let_go("a")
    await using
    await ordering
    assert states(bounded) == {ModelState.RESIDENT: 1, ModelState.FAILED: 1}


async def test_a_model_of_which_no_replica_serves_backs_off_as_a_whole(make: Make) -> None:
    clock = Clock()
    bounded = make(clock=clock)
    bounded.loader.faults["a"] = LoadFailed("no such folder")
    for _ in range(3):
        with pytest.raises(LoadFailed, match="no such folder"):
            await bounded.use("a")
    assert bounded.loader.loads == {"a": 1}
    assert bounded.residency.status("a").state is ModelState.FAILED
    assert "no such folder" in bounded.residency.status("a").problem
    clock.now += 3
    await bounded.use("a")


async def test_replicas_of_a_changed_checkpoint_do_not_serve_side_by_side(make: Make) -> None:
    bounded = make(budget=400)
    await bounded.use("a")
    bounded.loader.revisions["a"] = "another"
    await order(bounded)
    assert states(bounded) == {ModelState.RESIDENT: 1, ModelState.FAILED: 1}
    assert any("was changed" in replica.problem for replica in bounded.residency.status("a").replicas)
    await bounded.residency.unload("a")
    await order(bounded)
    assert {model.loaded.card.revision for model in bounded.residency.residents("a")} == {"another"}
    await both(bounded)


# Going


async def test_one_replica_too_many_goes_before_the_only_one_of_another_model(make: Make) -> None:
    bounded = make(sizes={"a": 100, "b": 100, "c": 100}, devices=FakeDevices("cpu"), budget=300)
    await bounded.use("c")
    await order(bounded)
    await bounded.use("b")
    assert states(bounded) == {ModelState.RESIDENT: 1, ModelState.COLD: 1}
    assert (places(bounded, "b"), places(bounded, "c")) == (["cpu"], ["cpu"])
    assert bounded.noting.evictions == {("a", "idle"): 1}
    assert bounded.loader.peak["cpu"] <= 300


async def test_the_last_replica_goes_like_any_other_model(make: Make) -> None:
    bounded = make(sizes={"a": 100, "b": 200}, devices=FakeDevices("cpu"), budget=200)
    await order(bounded)
    await bounded.use("b")
    assert states(bounded) == {ModelState.COLD: 2}
    assert bounded.noting.evictions == {("a", "idle"): 2}


async def test_while_one_replica_makes_room_the_other_serves(make: Make) -> None:
    bounded = make(sizes={"a": 100, "b": 100}, on={"b": "cuda:0"})
    await order(bounded)
    async with AsyncExitStack() as leases:
        for _ in range(2):
            await leases.enter_async_context(bounded.residency.lease("a"))
        for_b = asyncio.ensure_future(bounded.use("b"))
        await until(lambda: states(bounded)[ModelState.DRAINING] == 1)
        assert bounded.residency.status("a").state is ModelState.RESIDENT
        async with bounded.residency.lease("a") as model:
            assert model.loaded.device.name == "cuda:1"
    await for_b
    assert places(bounded) == ["cuda:1"]


async def test_no_replica_of_a_pinned_model_goes(make: Make) -> None:
    bounded = make(
        sizes={"a": 100, "b": 100, "c": 100}, devices=FakeDevices("cpu"), budget=300, pinned=("a",)
    )
    await order(bounded)
    for name in "bcb":
        await bounded.use(name)
    assert places(bounded) == ["cpu", "cpu"]


async def test_an_unload_takes_all_replicas_and_waits_for_the_leases_of_each(make: Make) -> None:
    bounded = make()
    await order(bounded)
    async with AsyncExitStack() as leases:
        for _ in range(2):
            await leases.enter_async_context(bounded.residency.lease("a"))
        unloading = asyncio.ensure_future(bounded.residency.unload("a"))
        await until(lambda: states(bounded) == {ModelState.DRAINING: 2})
        with pytest.raises(Draining):
            await bounded.use("a")
    assert (await unloading).state is ModelState.COLD
    assert states(bounded) == {ModelState.COLD: 2}
    assert [memory.reserved for memory in bounded.residency.memory()] == [0, 0]


async def test_watching_shows_each_replica_that_comes(make: Make) -> None:
    bounded = make()
    seen: list[int] = []

    async def watch() -> None:
        async for status in bounded.residency.watch():
            seen.append(sum(replica.state is ModelState.RESIDENT for replica in status.replicas))

    watching = asyncio.ensure_future(watch())
    await order(bounded)
    await until(lambda: seen[-1:] == [2])
    assert seen == sorted(seen)
    watching.cancel()
