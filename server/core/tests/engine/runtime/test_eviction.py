"""Several models in a memory that does not hold them all."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import structlog

from lensd_api import Draining, Exhausted, FailedPrecondition, LensdError, LoadFailed
from lensd_server.engine.events import LoadStep, ModelState, Warned
from server.core.tests.engine.runtime.bounded import Bounded, FakeDevices

PATIENCE_S = 60.0

Make = Callable[..., Bounded]


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Bounded] = []

    def build(**how: Any) -> Bounded:
        how.setdefault("sizes", {"a": 100, "b": 100})
        made.append(Bounded(**how))
        return made[-1]

    yield build
    for bounded in made:
        bounded.close()


async def until(condition: Callable[[], bool]) -> None:
    """Lets other threads work until ``condition`` holds."""
    pause = asyncio.Event()
    for _ in range(int(PATIENCE_S / 0.005)):
        if condition():
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(pause.wait(), 0.005)
    raise AssertionError("it never came to that")


def state(bounded: Bounded, name: str) -> ModelState:
    return bounded.residency.status(name).state


async def test_the_least_recently_used_makes_room(make: Make) -> None:
    bounded = make(sizes={"a": 40, "b": 40, "c": 40}, budget=100)
    for name in ("a", "b", "a", "c"):
        await bounded.use(name)
    assert {name: state(bounded, name) for name in "abc"} == {
        "a": ModelState.RESIDENT,
        "b": ModelState.COLD,
        "c": ModelState.RESIDENT,
    }
    assert bounded.noting.evictions == {("b", "idle"): 1}
    assert bounded.loader.peak["cpu"] <= 100


async def test_what_fits_together_stays_together(make: Make) -> None:
    bounded = make(budget=200)
    for name in ("a", "b", "a", "b"):
        await bounded.use(name)
    assert bounded.loader.loads == {"a": 1, "b": 1}
    assert not bounded.noting.evictions


async def test_a_leased_model_is_waited_for_and_its_waiter_hears_of_it(make: Make) -> None:
    bounded = make()
    heard: list[LoadStep | Warned] = []

    async def want_b() -> None:
        async with bounded.residency.lease("b", heard.append):
            assert bounded.residency.resident("a") is None

    async with bounded.residency.lease("a"):
        wanting = asyncio.ensure_future(want_b())
        await until(lambda: bounded.residency.status("b").detail == "1 analyses of a to end")
        assert state(bounded, "a") is ModelState.DRAINING
        assert bounded.residency.status("a").detail == "makes room for b"
        assert bounded.residency.status("b").waiting == 1
        assert bounded.residency.resident("a") is not None
    await wanting
    waits = [step for step in heard if isinstance(step, LoadStep) and step.stage == "wait_memory"]
    assert "1 analyses of a to end" in {step.detail for step in waits}


async def test_a_pinned_model_never_goes_and_what_cannot_fit_beside_it_is_refused_at_once(make: Make) -> None:
    bounded = make(pinned=("a",))
    await bounded.use("a")
    with pytest.raises(Exhausted, match=r"100 bytes .* have 100 of 150") as refused:
        await bounded.use("b")
    assert refused.value.reason == "NO_ROOM"
    assert refused.value.retry_after_s
    assert state(bounded, "a") is ModelState.RESIDENT
    await bounded.use("a")


async def test_a_model_larger_than_the_budget_is_refused_with_both_numbers(make: Make) -> None:
    bounded = make(sizes={"a": 100, "huge": 151})
    await bounded.use("a")
    with pytest.raises(FailedPrecondition) as refused:
        await bounded.use("huge")
    assert refused.value.reason == "MODEL_TOO_LARGE"
    assert (refused.value.metadata["needed_bytes"], refused.value.metadata["budget_bytes"]) == ("151", "150")
    assert "151" in bounded.residency.status("huge").problem
    assert state(bounded, "a") is ModelState.RESIDENT, "nothing is evicted for what cannot fit"


async def test_a_model_stays_for_its_minimum(make: Make) -> None:
    clock = Clock()
    bounded = make(min_residency_s=60.0, clock=clock)
    await bounded.use("a")
    wanting = asyncio.ensure_future(bounded.use("b"))
    await until(lambda: bounded.residency.status("b").detail.startswith("a, which stays for 60.0 s more"))
    await bounded.use("a")
    assert state(bounded, "a") is ModelState.RESIDENT, "it serves while it stays"
    clock.now += 61
    await wanting
    assert state(bounded, "a") is ModelState.COLD


async def test_without_a_setting_a_model_stays_as_long_as_its_load_took(make: Make) -> None:
    clock = Clock()
    bounded = make(min_residency_s=None, clock=clock)
    bounded.loader.held.add("a")
    using = asyncio.ensure_future(bounded.use("a"))
    await asyncio.to_thread(bounded.loader.wait_until_inside, "a")
    clock.now += 7
    bounded.loader.let_go("a")
    await using
    wanting = asyncio.ensure_future(bounded.use("b"))
    await until(lambda: "stays for 7.0 s more" in bounded.residency.status("b").detail)
    clock.now += 7.5
    await wanting


async def test_who_asked_first_is_loaded_first(make: Make) -> None:
    bounded = make(sizes={"a": 100, "b": 100, "c": 100})
    order: list[str] = []

    async def want(name: str) -> None:
        async with bounded.residency.lease(name):
            order.append(name)

    async with bounded.residency.lease("a"):
        wanting = [asyncio.ensure_future(want("c"))]
        await until(lambda: bool(bounded.residency.status("c").detail))
        wanting.append(asyncio.ensure_future(want("b")))
        await until(lambda: bounded.residency.status("b").detail == "c, which was asked for first")
        wanting.append(asyncio.ensure_future(want("a")))
    await asyncio.gather(*wanting)
    assert order == ["c", "b", "a"]


async def test_new_analyses_of_a_model_that_makes_room_wait_for_their_turn(make: Make) -> None:
    bounded = make()
    heard: list[LoadStep | Warned] = []

    async def want_a() -> None:
        async with bounded.residency.lease("a", heard.append):
            pass

    async with bounded.residency.lease("a"):
        for_b = asyncio.ensure_future(bounded.use("b"))
        await until(lambda: state(bounded, "a") is ModelState.DRAINING)
        for_a = asyncio.ensure_future(want_a())
        await until(lambda: bounded.residency.status("a").waiting == 1)
    await asyncio.gather(for_a, for_b)
    stages = [step.stage for step in heard if isinstance(step, LoadStep)]
    assert stages[0] == "wait_turn"
    assert bounded.noting.evictions["a", "turn"] == 1
    assert bounded.loader.loads == {"a": 2, "b": 1}


async def test_when_the_other_is_not_wanted_any_more_the_model_stays_and_its_waiters_go_on(
    make: Make,
) -> None:
    bounded = make()
    async with bounded.residency.lease("a"):
        for_b = asyncio.ensure_future(bounded.use("b"))
        await until(lambda: state(bounded, "a") is ModelState.DRAINING)
        for_a = asyncio.ensure_future(bounded.use("a"))
        await until(lambda: bounded.residency.status("a").waiting == 1)
        for_b.cancel()
        await for_a
    with suppress(asyncio.CancelledError):
        await for_b
    await until(lambda: state(bounded, "b") is ModelState.COLD)
    assert state(bounded, "a") is ModelState.RESIDENT
    assert bounded.loader.loads == {"a": 1}
    assert bounded.noting.outcomes["b", "cancelled"] == 1


async def test_a_load_that_nobody_wants_any_more_is_given_up_at_its_next_stage(make: Make) -> None:
    bounded = make()
    bounded.loader.held.add("a")
    using = asyncio.ensure_future(bounded.use("a"))
    await asyncio.to_thread(bounded.loader.wait_until_inside, "a")
    using.cancel()
    with suppress(asyncio.CancelledError):
        await using
    bounded.loader.let_go("a")
    await until(lambda: bounded.noting.outcomes["a", "cancelled"] == 1)
    assert state(bounded, "a") is ModelState.COLD
    assert [memory.reserved for memory in bounded.residency.memory()] == [0]
    await bounded.use("a")


async def test_a_load_is_not_given_up_while_one_of_several_still_wants_it(make: Make) -> None:
    bounded = make()
    bounded.loader.held.add("a")
    using = [asyncio.ensure_future(bounded.use("a")) for _ in range(3)]
    await asyncio.to_thread(bounded.loader.wait_until_inside, "a")
    for task in using[:2]:
        task.cancel()
    bounded.loader.let_go("a")
    outcomes = await asyncio.gather(*using, return_exceptions=True)
    assert outcomes[2] is None
    assert bounded.loader.loads["a"] == 1


async def test_an_unload_ends_a_load_that_an_operator_asked_for(make: Make) -> None:
    bounded = make()

    async def order_b() -> None:
        async for _ in bounded.residency.load("b"):
            pass

    async with bounded.residency.lease("a"):
        ordering = asyncio.ensure_future(order_b())
        await until(lambda: state(bounded, "a") is ModelState.DRAINING)
        assert (await bounded.residency.unload("b")).state is ModelState.COLD
        with pytest.raises(Draining):
            await ordering
        await until(lambda: state(bounded, "a") is ModelState.RESIDENT)


async def test_an_unload_whose_caller_goes_away_while_it_frees_leaves_a_model_that_can_be_loaded(
    make: Make,
) -> None:
    bounded = make()
    for _ in range(20):
        await bounded.use("a")
        unloading = asyncio.ensure_future(bounded.residency.unload("a"))
        await asyncio.sleep(0)
        unloading.cancel()
        with suppress(asyncio.CancelledError):
            await unloading
    async with asyncio.timeout(PATIENCE_S):
        await bounded.use("a")


async def test_a_failed_load_gives_its_room_back_and_leaves_the_other_serving(make: Make) -> None:
    bounded = make(budget=200)
    await bounded.use("a")
    bounded.loader.faults["b"] = RuntimeError("weights on fire")
    with pytest.raises(LoadFailed):
        await bounded.use("b")
    assert [memory.reserved for memory in bounded.residency.memory()] == [100]
    await bounded.use("a")


async def test_a_load_that_failed_does_not_stand_in_its_own_way(make: Make) -> None:
    clock = Clock()
    bounded = make(clock=clock)
    for _ in range(3):
        bounded.loader.faults["a"] = LoadFailed("no")
        with pytest.raises(LoadFailed):
            await bounded.use("a")
        clock.now += 400
    await bounded.use("a")
    await bounded.use("b")


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


async def test_a_deadline_that_leaves_no_time_for_the_load_is_refused_early(make: Make) -> None:
    clock = Clock()
    bounded = make(min_residency_s=60.0, clock=clock)
    await bounded.use("a")

    async def want_b(deadline: float) -> None:
        async with bounded.residency.lease("b", deadline=deadline):
            pass

    with pytest.raises(Exhausted, match=r"cannot be loaded in the time allowed: .*a, which stays") as refused:
        await want_b(clock.now + 10)
    assert refused.value.reason == "NO_ROOM"
    assert refused.value.retry_after_s == pytest.approx(60.0)
    await until(lambda: state(bounded, "b") is ModelState.COLD)
    in_time = asyncio.ensure_future(want_b(clock.now + 100))
    await until(lambda: bool(bounded.residency.status("b").detail))
    clock.now += 61
    await in_time


async def test_a_lease_that_does_not_end_in_time_is_refused_before_the_deadline(make: Make) -> None:
    bounded = make()
    loop = asyncio.get_running_loop()
    async with bounded.residency.lease("a"):
        deadline = loop.time() + 0.3
        with pytest.raises(Exhausted, match="1 analyses of a to end"):
            async with bounded.residency.lease("b", deadline=deadline):
                pass
        assert loop.time() < deadline


async def test_a_wrong_prediction_is_corrected_and_counts_from_then_on(make: Make) -> None:
    bounded = make(sizes={"a": 60, "b": 60})
    bounded.loader.really["a"] = 100
    await bounded.use("a")
    assert bounded.residency.status("a").reserved_bytes == 100
    await bounded.use("b")
    assert bounded.noting.evictions == {("a", "idle"): 1}


async def test_models_that_displace_each_other_are_warned_of(make: Make) -> None:
    clock = Clock()
    bounded = make(clock=clock, max_evictions_per_minute=3)
    heard: list[LoadStep | Warned] = []
    with structlog.testing.capture_logs() as logs:
        for name in ("a", "b") * 4:
            async with bounded.residency.lease(name, heard.append):
                pass
    warnings = [event for event in heard if isinstance(event, Warned)]
    assert {warning.reason for warning in warnings} == {"MODELS_DISPLACE_EACH_OTHER"}
    assert len(warnings) == 4, "each caller whose wait was part of it"
    assert [entry["event"] for entry in logs].count("models displace each other") == 1
    heard.clear()
    clock.now += 120
    async with bounded.residency.lease("a", heard.append):
        pass
    assert not [event for event in heard if isinstance(event, Warned)], "it is over"


async def test_watching_shows_who_makes_room_for_whom(make: Make) -> None:
    bounded = make()
    seen: list[tuple[str, str, str]] = []

    async def watch() -> None:
        async for status in bounded.residency.watch():
            seen.append((status.name, status.state.value, status.detail))

    watching = asyncio.ensure_future(watch())
    async with bounded.residency.lease("a"):
        wanting = asyncio.ensure_future(bounded.use("b"))
        await until(lambda: ("a", "draining", "makes room for b") in seen)
        await until(lambda: ("b", "loading", "1 analyses of a to end") in seen)
    await wanting
    await until(lambda: ("b", "resident", "") in seen and ("a", "cold", "") in seen)
    watching.cancel()


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
