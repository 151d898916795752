"""The life of an analysis: order of events, who is told what, and that errors say whose fault it is."""

import asyncio
import contextvars
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import torch

from lensd_api import (
    AnalysisRecord,
    Analyzer,
    BaseParams,
    Capture,
    DeadlineExceeded,
    DeviceOutOfMemory,
    Draining,
    Edge,
    Example,
    Graph,
    InvalidParams,
    InvalidRequest,
    InvalidResult,
    Node,
    PluginFailure,
    QueueFull,
    Record,
    RequirementNotMet,
    Requirements,
    Row,
    Site,
    Table,
    Unit,
    UnknownModel,
)
from lensd_server.engine.events import (
    Accepted,
    Completed,
    Found,
    ModelState,
    Progress,
    Warned,
)
from lensd_server.engine.observers import Observers
from lensd_server.settings import LimitSettings

SITES = frozenset({Site.FINAL_RESIDUAL})


class Prompt(BaseParams):
    prompt: str = "The capital"


class Count(Analyzer):
    """Counts tokens."""

    name = "count"
    Params = Prompt
    examples = (Example("one", "it counts", {"prompt": "one"}),)

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        ids = ctx.model.encode(params.prompt)
        yield Table("tokens", {"count": [len(ids)]})


class PlainCount(Count):
    """Counts tokens on a thread."""

    name = "plain-count"

    def analyze(self, params: Any, ctx: Any) -> Iterator[Any]:
        ids = ctx.model.encode(params.prompt)
        ctx.model.forward([Row(ids)], Capture(SITES))
        yield Table("tokens", {"count": [len(ids)]})


class Modelless(Analyzer):
    """Needs no model; does what its test tells it to."""

    name = "modelless"

    def __init__(self, body: Callable[[Any], AsyncIterator[Any]]) -> None:
        self.body = body

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(model=False)

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        async for result in self.body(ctx):
            yield result


class PlainModelless(Modelless):
    """The same on a thread."""

    name = "plain-modelless"

    def analyze(self, params: Any, ctx: Any) -> Iterator[Any]:
        yield from self.body(ctx)  # pyright: ignore[reportReturnType]


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


async def test_loading_on_demand_is_told_as_progress(rig: Any) -> None:
    events = await rig.events(Count())
    assert events[0].model_state is ModelState.COLD
    assert "load" in [event.stage for event in events if isinstance(event, Progress)]
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


class NeedsExperts(Count):
    """Needs experts in every layer."""

    name = "needs-experts"

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(units=frozenset({Unit.EXPERT}))


@pytest.mark.parametrize("loaded", [False, True])
async def test_a_model_that_lacks_a_unit_is_refused_with_the_reason(rig: Any, loaded: bool) -> None:
    if loaded:
        await rig.events(Count())
    with pytest.raises(RequirementNotMet, match="'expert'"):
        await rig.events(NeedsExperts())
    assert rig.residency.leases("llama") == 0


async def test_an_exception_becomes_a_plugin_failure_without_its_text(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        raise KeyError("a secret path")

    with pytest.raises(PluginFailure) as failed:
        await rig.events(Modelless(body))
    assert "secret" not in failed.value.message
    assert failed.value.metadata["analyzer"] == "modelless"


async def test_what_was_found_before_a_failure_is_delivered_first(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        raise KeyError

    stream = rig.start(Modelless(body))
    seen = []
    with pytest.raises(PluginFailure):
        async for event in stream:
            seen.append(type(event))
    assert seen == [Accepted, Found]


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), RecursionError(), asyncio.CancelledError()]
)
async def test_nothing_an_analyzer_raises_ends_the_server(rig: Any, error: BaseException) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        raise error

    with pytest.raises(PluginFailure):
        await rig.events(Modelless(body))
    assert await rig.results(Count())


async def test_a_plain_generator_that_exits_is_a_plugin_failure(rig: Any) -> None:
    def body(ctx: Any) -> Iterator[Any]:
        yield Record("r", {})
        raise SystemExit(3)

    with pytest.raises(PluginFailure):
        await rig.events(PlainModelless(body))  # pyright: ignore[reportArgumentType]


async def test_what_is_not_a_result_is_a_plugin_failure(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield {"not": "a result"}

    with pytest.raises(PluginFailure):
        await rig.events(Modelless(body))


async def test_out_of_memory_in_an_analyzer_is_said_so(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(DeviceOutOfMemory):
        await rig.events(Modelless(body))


async def test_an_error_raised_on_purpose_passes_as_it_is(rig: Any) -> None:
    with pytest.raises(InvalidParams, match="prompt"):
        await rig.events(Count(), prompt="word " * 200)


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


class Noting:
    def __init__(self) -> None:
        self.told: list[tuple[str, AnalysisRecord]] = []

    def started(self, analysis: AnalysisRecord) -> None:
        self.told.append(("started", analysis))

    def finished(self, analysis: AnalysisRecord) -> None:
        self.told.append(("finished", analysis))


@pytest.mark.parametrize(
    "result",
    [
        Table("t", {"ragged": [1], "columns": []}),
        Table("t", {"mixed": [1, "x"]}),
        Table("t", {"huge": [2**64]}),
        Table("t", {"open": [1]}, last=False),
        Graph("g", [Node("n")], [Edge("n", "nowhere")]),
        Record("r", {"surrogate": "\ud800"}),
        Table("t", {"long": [*range(10_000), "x"]}),
    ],
    ids=lambda result: next(iter(getattr(result, "columns", ["graph or record"]))),
)
@pytest.mark.parametrize("kind", [Modelless, PlainModelless])
async def test_a_result_nobody_could_read_is_a_plugin_error_for_caller_and_metrics_alike(
    make_rig: Any, kind: Any, result: Any
) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        yield result

    noting = Noting()
    rig = make_rig(observers=Observers(analyses=[noting]))
    with pytest.raises(InvalidResult, match=f"result '{result.name}'") as ended:
        await rig.events(kind(body if kind is Modelless else lambda ctx: [result]))
    assert (ended.value.status, ended.value.reason) == ("INTERNAL", "INVALID_RESULT")
    await rig.settled()
    assert noting.told[-1][1].outcome == "plugin_error"


async def test_what_is_said_beside_results_must_be_text(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        ctx.warn("ODD", 3)
        yield Record("r", {})

    with pytest.raises(PluginFailure):
        await rig.events(Modelless(body))


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
