"""The life of an analysis: order of events, who is admitted, deadlines, draining."""

import asyncio
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from lensd_api import (
    DeadlineExceeded,
    Draining,
    InvalidParams,
    InvalidRequest,
    PluginFailure,
    QueueFull,
    Record,
    RequirementNotMet,
    UnknownModel,
)
from lensd_server.engine.events import (
    Accepted,
    Completed,
    Found,
    ModelState,
    Progress,
)
from lensd_server.engine.observers import Observers
from lensd_server.settings import LimitSettings
from server.core.tests.engine.runtime.counting import (
    Count,
    Modelless,
    Noting,
    PlainCount,
    PlainModelless,
)


async def test_accepted_comes_first_and_completed_last(rig: Any) -> None:
    events = await rig.events(Count(), prompt="The capital of France")
    assert [type(event) for event in events if not isinstance(event, Progress)] == [
        Accepted,
        Found,
        Completed,
    ]
    assert isinstance(events[0], Accepted)
    assert events[0].model == "llama"
    assert (events[0].distribution, events[0].analyzer_version) == ("tests", "1.2.3")
    assert isinstance(events[-1], Completed)
    assert len(events[-1].model_revision) == 64


async def test_who_finds_the_model_cold_has_it_loaded(rig: Any) -> None:
    events = await rig.events(Count())
    assert events[0].model_state is ModelState.COLD
    again = await rig.events(Count())
    assert again[0].model_state is ModelState.RESIDENT
    assert again[0].model_revision == events[-1].model_revision


async def test_plain_generators_give_what_async_ones_do(rig: Any) -> None:
    one, other = await rig.results(Count()), await rig.results(PlainCount())
    assert one[0].columns == other[0].columns


async def test_usage_adds_up(rig: Any) -> None:
    usage = (await rig.events(PlainCount()))[-1].usage
    assert usage.rows == 1
    assert usage.tokens > 0
    assert usage.forward_s > 0
    assert usage.total_s == pytest.approx(usage.queue_s + usage.forward_s + usage.compute_s, rel=1e-6)


async def test_an_analysis_without_a_model_loads_none(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        with pytest.raises(RequirementNotMet):
            _ = ctx.model
        yield Record("r", {})

    events = await rig.events(Modelless(body))
    assert events[0].model == ""
    assert events[0].model_state is None
    assert rig.residency.status("llama").state is ModelState.COLD


async def test_the_model_must_be_named_when_there_are_several(make_rig: Any) -> None:
    rig = make_rig(("gpt2", "llama"))
    with pytest.raises(InvalidRequest, match="gpt2, llama"):
        await rig.events(Count())
    assert (await rig.events(Count(), model="gpt2"))[0].model == "gpt2"


async def test_an_unknown_model_is_named_with_those_there_are(rig: Any) -> None:
    with pytest.raises(UnknownModel, match="llama"):
        await rig.events(Count(), model="no-such")


async def test_params_are_checked_before_anything_is_loaded(rig: Any) -> None:
    with pytest.raises(InvalidParams) as refused:
        await rig.events(Count(), promt="x")
    assert refused.value.violations[0].field == "promt"
    assert rig.residency.status("llama").state is ModelState.COLD


async def test_admission_is_bounded(make_rig: Any) -> None:
    rig = make_rig(max_analyses=1)
    go = threading.Event()

    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        await asyncio.to_thread(go.wait, 60)

    stream = rig.start(Modelless(body))
    assert isinstance(await anext(stream), Accepted)
    with pytest.raises(QueueFull) as refused:
        await rig.events(Count())
    assert refused.value.retry_after_s
    rig.executor.limit(LimitSettings(max_analyses=2))
    assert await rig.results(Count()), "a limit may change while something runs"
    go.set()
    assert isinstance([event async for event in stream][-1], Completed)
    assert await rig.results(Count())


async def test_a_deadline_ends_an_analysis_that_waits(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded):
        await rig.events(Modelless(body), request={"deadline": time.monotonic() + 0.05})
    await rig.settled()


async def test_a_deadline_ends_an_analysis_that_computes(rig: Any) -> None:
    go = threading.Event()

    def body(ctx: Any) -> Iterator[Any]:
        yield Record("r", {})
        go.wait(60)  # stands for a long computation that looks at nothing

    with pytest.raises(DeadlineExceeded):
        await rig.events(PlainModelless(body), request={"deadline": time.monotonic() + 0.05})  # pyright: ignore[reportArgumentType]
    assert len(rig.executor.running()) == 1, "its thread still runs, and is counted"
    go.set()
    await rig.settled()


async def test_a_deadline_that_ends_a_wait_for_the_model_leaves_its_load_to_the_next(
    make_rig: Any, tiny: Any
) -> None:
    go = threading.Event()

    class Slow:
        loads = 0

        def load(self, name: str, settings: Any, report: Any, claim: Any) -> Any:
            self.loads += 1
            report("read", 0.5)
            assert go.wait(60)
            report("verify", 0.7)
            return tiny("llama")

    loader = Slow()
    rig = make_rig(loader=loader)
    with pytest.raises(DeadlineExceeded):
        await rig.events(Count(), request={"deadline": time.monotonic() + 0.05})
    go.set()
    assert await rig.results(Count())
    assert loader.loads == 1


async def test_a_deadline_that_has_passed_starts_nothing(rig: Any) -> None:
    with pytest.raises(DeadlineExceeded):
        await rig.events(Count(), request={"deadline": time.monotonic() - 1})
    assert rig.residency.status("llama").state is ModelState.COLD


async def test_the_servers_own_limit_holds_without_a_deadline(make_rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        await asyncio.Event().wait()

    with pytest.raises(DeadlineExceeded):
        await make_rig(max_timeout_s=0.05).events(Modelless(body))


NAMED = contextvars.ContextVar("NAMED", default="unset")


async def test_context_variables_follow_into_compute(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        NAMED.set("here")
        yield Record("r", {"seen": await ctx.compute(NAMED.get)})

    assert (await rig.results(Modelless(body)))[0].values == {"seen": "here"}


async def test_an_error_in_compute_reaches_the_analyzer(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        with pytest.raises(ZeroDivisionError):
            await ctx.compute(lambda: 1 / 0)
        yield Record("r", {})

    assert len(await rig.results(Modelless(body))) == 1


async def test_compute_never_runs_beside_a_forward(make_rig: Any, tiny: Any) -> None:
    rig = make_rig()
    await rig.events(Count())
    turn = tiny("llama").device.turn
    rig.executor._computing.device.turn = turn  # the loader's own, as the daemon wires it
    seen: list[bool] = []

    async def body(ctx: Any) -> AsyncIterator[Any]:
        seen.append(await ctx.compute(lambda: turn._taken))
        yield Record("r", {})

    with turn:
        stream = rig.start(Modelless(body))
        await anext(stream)
        await rig.results(Count())
        assert seen == [], "the turn is ours"
    assert isinstance([event async for event in stream][-1], Completed)
    assert seen == [True]


async def test_observers_learn_how_every_analysis_ended(make_rig: Any) -> None:
    noting = Noting()
    rig = make_rig(observers=Observers(analyses=[noting]))

    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        raise KeyError

    await rig.events(Count())
    with pytest.raises(InvalidParams):
        await rig.events(Count(), promt=1)
    with pytest.raises(PluginFailure):
        await rig.events(Modelless(body))
    with pytest.raises(DeadlineExceeded):
        await rig.events(Count(), request={"deadline": time.monotonic() - 1})
    stream = rig.start(Count())
    await anext(stream)
    await stream.aclose()
    await rig.settled()
    told = [(what, record.analyzer, record.outcome) for what, record in noting.told]
    assert told[:5] == [
        ("started", "count", ""),
        ("finished", "count", "ok"),
        ("finished", "count", "client_error"),
        ("started", "modelless", ""),
        ("finished", "modelless", "plugin_error"),
    ]
    assert told[5] == ("finished", "", "deadline")
    assert told[6][0] == "started"
    assert told[7][2] in ("cancelled", "ok")


async def test_draining_refuses_new_and_lets_running_ones_finish(rig: Any) -> None:
    go = threading.Event()

    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        await asyncio.to_thread(go.wait, 60)

    stream = rig.start(Modelless(body))
    await anext(stream)
    await anext(stream)
    draining = asyncio.ensure_future(rig.executor.drain(60))
    await asyncio.sleep(0)  # lets it begin
    with pytest.raises(Draining):
        await rig.events(Count())
    go.set()
    assert await draining == 0
    assert isinstance([event async for event in stream][-1], Completed)


async def test_draining_cancels_what_outlives_the_grace(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        await asyncio.Event().wait()

    stream = rig.start(Modelless(body))
    await anext(stream)
    assert await rig.executor.drain(0.01) == 1
    assert rig.executor.running() == []
