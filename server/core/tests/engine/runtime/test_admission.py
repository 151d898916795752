"""Who is let in, who is told to come back and when, and who never will be."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from lensd_api import (
    Analyzer,
    BaseParams,
    CallerShareTaken,
    Capture,
    Cost,
    DeadlineExceeded,
    Exhausted,
    FailedPrecondition,
    QueueFull,
    Record,
    Requirements,
    Row,
    Site,
)
from lensd_server.engine.events import Accepted, Completed, Found, ModelState
from lensd_server.engine.running import is_rejection, outcome_of
from lensd_server.engine.turnover import LEAST_S, MOST_S, UNKNOWN_S, Turnover
from lensd_server.settings import LimitSettings

SITES = frozenset({Site.FINAL_RESIDUAL})
HERE, THERE = {"peer": "ipv4:10.0.0.1:1"}, {"peer": "ipv4:10.0.0.2:1"}


class Sized(Analyzer):
    """Runs one row, and says beforehand what its parameters tell it to."""

    name = "sized"

    class Params(BaseParams):
        tokens: int = 8
        size: int = 0
        seconds: float = 0.0
        hold: bool = False

    def __init__(self) -> None:
        self.go = threading.Event()

    def estimate(self, params: Any, card: Any) -> Cost:
        return Cost(params.tokens, params.size, params.seconds)

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        if params.hold:
            await asyncio.to_thread(self.go.wait, 60)
        await ctx.model.forward([Row(tuple(range(1, 9)))], Capture(SITES))


class PlainSized(Sized):
    """The same on a thread."""

    name = "plain-sized"

    def analyze(self, params: Any, ctx: Any) -> Iterator[Any]:
        yield Record("r", {})
        ctx.model.forward([Row(tuple(range(1, 9)))], Capture(SITES))


async def begun(rig: Any, analyzer: Analyzer, **how: Any) -> Any:
    """A stream that has shown its first result and goes on."""
    stream = rig.start(analyzer, hold=True, **how)
    while not isinstance(await anext(stream), Found):
        pass
    return stream


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("kind", [Sized, PlainSized])
async def test_what_nobody_is_ever_given_is_refused_with_both_numbers(
    make_rig: Any, kind: type[Sized], loaded: bool
) -> None:
    rig = make_rig(max_admitted_tokens=1000, caller_share=0.5)
    if loaded:
        await rig.events(Sized())
    with pytest.raises(FailedPrecondition, match=r"501 tokens.*more than 500") as refused:
        await rig.events(kind(), tokens=501)
    assert refused.value.reason == "OVER_BUDGET"
    assert refused.value.retry_after_s is None
    assert (refused.value.metadata["needed"], refused.value.metadata["limit"]) == ("501", "500")
    assert outcome_of(refused.value) == "rejected"
    assert is_rejection(refused.value)
    assert rig.residency.leases("llama") == 0
    assert await rig.results(kind(), tokens=500)


async def test_a_refusal_comes_before_accepted_where_the_model_is_resident(make_rig: Any) -> None:
    rig = make_rig(max_admitted_bytes=1000)
    await rig.events(Sized())
    with pytest.raises(FailedPrecondition, match="bytes"):
        await anext(rig.start(Sized(), size=900))


@pytest.mark.parametrize(
    ("what", "limit"), [("tokens", "max_admitted_tokens"), ("size", "max_admitted_bytes")]
)
async def test_costs_of_all_callers_are_counted_while_they_run(make_rig: Any, what: str, limit: str) -> None:
    rig = make_rig(**{limit: 1000}, caller_share=0.6)
    await rig.events(Sized())
    holding = Sized()
    stream = await begun(rig, holding, request=HERE, **{what: 600})
    with pytest.raises(QueueFull, match=r"will take 600 .*this one 500.*limit 1000") as refused:
        await rig.events(Sized(), request=THERE, **{what: 500})
    assert refused.value.retry_after_s
    assert await rig.results(Sized(), request=THERE, **{what: 400})
    holding.go.set()
    assert isinstance([event async for event in stream][-1], Completed)
    assert await rig.results(Sized(), request=THERE, **{what: 500})


async def test_no_caller_gets_more_than_its_share(make_rig: Any) -> None:
    rig = make_rig(max_admitted_tokens=1000, caller_share=0.6)
    await rig.events(Sized())
    holding = Sized()
    stream = await begun(rig, holding, request=HERE, tokens=400)
    with pytest.raises(CallerShareTaken, match=r"10\.0\.0\.1.*600 tokens"):
        await rig.events(Sized(), request=HERE, tokens=300)
    assert await rig.results(Sized(), request=THERE, tokens=300)
    holding.go.set()
    async for _ in stream:
        pass


async def test_one_caller_leaves_places_to_others(make_rig: Any) -> None:
    rig = make_rig(max_analyses=2, caller_share=0.5)
    holding = Sized()
    stream = await begun(rig, holding, request=HERE)
    with pytest.raises(CallerShareTaken, match="1 analyses") as refused:
        await rig.events(Sized(), request=HERE)
    assert refused.value.reason == "CALLER_SHARE"
    assert (refused.value.metadata["quota"], refused.value.metadata["limit"]) == ("limits.caller_share", "1")
    assert await rig.results(Sized(), request=THERE)
    holding.go.set()
    async for _ in stream:
        pass


async def test_new_limits_hold_for_whoever_comes_next(make_rig: Any) -> None:
    rig = make_rig(max_analyses=1)
    holding = Sized()
    stream = await begun(rig, holding)
    with pytest.raises(Exhausted):
        await rig.events(Sized())
    rig.executor.limit(LimitSettings(max_analyses=3))
    assert await rig.results(Sized())
    holding.go.set()
    async for _ in stream:
        pass


async def test_an_estimate_that_fails_refuses_nobody_and_is_not_free(make_rig: Any) -> None:
    class Wrong(Sized):
        """Cannot estimate."""

        name = "wrong"

        def estimate(self, params: Any, card: Any) -> Cost:
            raise KeyError

    rig = make_rig(max_admitted_tokens=1000, caller_share=1.0)
    await rig.events(Sized())
    context = rig.resident("llama").loaded.card.anatomy.context_length
    wrong = Wrong()
    stream = await begun(rig, wrong)
    with pytest.raises(QueueFull):
        await rig.events(Sized(), tokens=1001 - context)
    wrong.go.set()
    assert isinstance([event async for event in stream][-1], Completed)


async def test_a_deadline_that_cannot_be_met_is_refused_with_both_numbers(rig: Any) -> None:
    await rig.events(Sized(), seconds=3600.0)
    with pytest.raises(
        DeadlineExceeded, match=r"needs 3600\..* s at the least.*deadline is in [56]\d\."
    ) as refused:
        await rig.events(Sized(), seconds=3600.0, request={"deadline": time.monotonic() + 60})
    assert refused.value.reason == "DEADLINE_TOO_SHORT"
    assert outcome_of(refused.value) == "rejected"
    assert float(refused.value.metadata["needed_seconds"]) >= 3600.0
    assert float(refused.value.metadata["left_seconds"]) <= 60.0


async def test_an_analyzer_that_exaggerates_is_not_refused_for_it(rig: Any) -> None:
    soon = {"deadline": time.monotonic() + 60}
    assert await rig.results(Sized(), seconds=3600.0, request=soon), "never seen: nobody knows better"
    await rig.events(Sized(), tokens=1_000_000)
    assert await rig.results(Sized(), tokens=1_000_000, seconds=3600.0, request=soon)


async def test_what_is_ahead_counts_toward_a_deadline(rig: Any) -> None:
    await rig.events(Sized())
    resident = rig.resident("llama")
    resident.batcher.seconds_ahead = lambda ticket: 100.0
    with pytest.raises(DeadlineExceeded, match="wait 100"):
        await rig.events(Sized(), request={"deadline": time.monotonic() + 60})


async def test_a_refused_analysis_is_never_accepted_and_leaves_nothing(make_rig: Any) -> None:
    rig = make_rig(max_admitted_tokens=100)
    await rig.events(Sized())
    stream = rig.start(Sized(), tokens=101)
    with pytest.raises(FailedPrecondition):
        await anext(stream)
    assert rig.executor.running() == []


async def test_accepted_tells_the_place_and_the_models_state(rig: Any) -> None:
    holding = Sized()
    first = rig.start(holding, hold=True)
    cold = await anext(first)
    assert isinstance(cold, Accepted)
    assert (cold.queue_position, cold.model_state) == (0, ModelState.COLD)
    while not isinstance(await anext(first), Found):
        pass
    second = rig.start(holding)
    warm = await anext(second)
    assert isinstance(warm, Accepted)
    assert (warm.queue_position, warm.model_state) == (1, ModelState.RESIDENT)
    holding.go.set()
    for stream in (first, second):
        async for _ in stream:
            pass


async def test_hundreds_at_once_are_all_done_or_told_when_to_come_back(make_rig: Any) -> None:
    rig = make_rig(max_analyses=40, caller_share=1.0)
    await rig.events(Sized())

    ends = await asyncio.gather(*(rig.events(Sized()) for _ in range(300)), return_exceptions=True)
    refused = [end for end in ends if isinstance(end, QueueFull)]
    assert all(end.retry_after_s for end in refused)
    assert 0 < len(refused) <= 260
    assert sum(isinstance(end, list) and isinstance(end[-1], Completed) for end in ends) == 300 - len(refused)
    await rig.settled()
    assert rig.residency.leases("llama") == 0
    assert rig.resident("llama").batcher.waiting() == (0, 0)


class NoModel(Analyzer):
    """Needs no model."""

    name = "no-model"

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(model=False)

    def estimate(self, params: Any, card: Any) -> Cost:
        raise AssertionError("there is no card to estimate by")

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})


async def test_without_a_model_nothing_is_estimated(rig: Any) -> None:
    assert await rig.results(NoModel())


def test_those_turned_away_are_told_to_come_one_after_the_other() -> None:
    turnover = Turnover()
    for stayed_s in (3.0, 6.0, 9.0):
        turnover.left(stayed_s)
    assert [turnover.retry_after_s(3) for _ in range(5)] == [2.0, 4.0, 6.0, 6.0, 6.0]
    turnover.left(6.0)
    assert turnover.retry_after_s(3) == 6.0


def test_before_anybody_left_a_second_is_as_good_as_any() -> None:
    assert Turnover().retry_after_s(3) == UNKNOWN_S


def test_nobody_is_told_to_come_back_at_once_or_after_minutes() -> None:
    quick, slow = Turnover(), Turnover()
    quick.left(0.0)
    slow.left(3600.0)
    assert (quick.retry_after_s(3), slow.retry_after_s(3)) == (LEAST_S, MOST_S)
