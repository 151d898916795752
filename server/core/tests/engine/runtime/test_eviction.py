"""Several models in a memory that does not hold them all."""

import asyncio
from contextlib import suppress

import pytest
import structlog

from lensd_api import DeadlineExceeded, Draining, Exhausted, FailedPrecondition, LoadFailed
from lensd_server.engine.events import LoadStep, ModelState, Warned
from server.core.tests.engine.runtime.bounded import (
    PATIENCE_S,
    Clock,
    Make,
    state,
    until,
)


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


async def test_nothing_goes_for_a_load_whose_callers_ran_out_of_time(make: Make) -> None:
    clock = Clock()
    bounded = make(clock=clock)
    bounded.loader.takes["b"] = lambda: clock.advance(7.0)
    await bounded.use("b")
    await bounded.use("a")
    with pytest.raises(DeadlineExceeded, match=r"takes 7\.00 s"):
        async with bounded.residency.lease("b", deadline=clock.now + 1.0):
            pass
    await until(lambda: bounded.noting.outcomes["b", "cancelled"] == 1)
    assert (state(bounded, "a"), state(bounded, "b")) == (ModelState.RESIDENT, ModelState.COLD)
    assert bounded.noting.evictions == {("b", "idle"): 1}, "only that which made room for a"
    await bounded.residency.unload("a")
    with pytest.raises(DeadlineExceeded):
        async with bounded.residency.lease("b", deadline=clock.now + 1.0):
            pass
    await until(lambda: state(bounded, "b") is ModelState.RESIDENT)


async def test_a_lease_that_does_not_end_in_time_is_refused_before_the_deadline(make: Make) -> None:
    bounded = make()
    loop = asyncio.get_running_loop()
    async with bounded.residency.lease("a"):
        deadline = loop.time() + 0.3
        with pytest.raises(Exhausted, match="1 analyses of a to end"):
            async with bounded.residency.lease("b", deadline=deadline):
                pass
        assert loop.time() < deadline


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
