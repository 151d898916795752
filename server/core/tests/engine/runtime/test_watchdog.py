"""Analyzers that do not give way are found, told of once, and harm as little as can be."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from queue import SimpleQueue
from typing import Any

import pytest

from lensd_api import (
    Analyzer,
    Capture,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    Record,
    Reduce,
    Requirements,
    Row,
    Site,
)
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.channel import Channel
from lensd_server.engine.events import AnalysisRequest, RegisteredAnalyzer
from lensd_server.engine.loop import AnalysisLoop
from lensd_server.engine.running import Analysis
from lensd_server.engine.watchdog import Stuck, Watchdog
from lensd_server.plugin_loading import LoadedPlugin, PluginRecord, PluginStatus
from lensd_server.plugins import AnalyzerRegistry
from lensd_server.stuck import StuckAnalyzers


class Clock:
    """Time that passes when a test says so."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Scene:
    """A real loop, a clock of the test's own, and what the watchdog told."""

    def __init__(self) -> None:
        self.loop = AnalysisLoop()
        self.clock = Clock()
        self.running: list[Analysis] = []
        self.told: list[Stuck] = []
        self.holding: list[tuple[Ticket, float]] = []
        self.watchdog = Watchdog(
            self.loop,
            lambda: self.running,
            self.told.append,
            stall_s=10.0,
            holding=lambda: self.holding,
            clock=self.clock,
        )

    def turned(self) -> None:
        """Waits until the loop has answered everything it was asked so far."""
        answered = threading.Event()
        self.loop.ask(answered.set)
        assert answered.wait(60)


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.loop.close()


def analysis() -> Analysis:
    return Analysis(
        AnalysisRequest("r", "a"), Ticket(request_id="r"), Channel(), analyzer="a", distribution="d"
    )


async def test_a_loop_that_turns_is_left_alone(scene: Scene) -> None:
    for _ in range(5):
        scene.watchdog.look()
        scene.turned()
        scene.clock.now += 60.0
    assert scene.told == []


async def test_a_held_loop_is_told_of_once_with_the_analysis_that_holds_it(scene: Scene) -> None:
    entered, leave = threading.Event(), threading.Event()
    culprit, bystander = analysis(), analysis()
    scene.running = [bystander, culprit]

    async def hold() -> None:
        culprit.task = asyncio.current_task()
        entered.set()
        leave.wait(60)

    scene.loop.start(hold())
    assert await asyncio.to_thread(entered.wait, 60)
    scene.watchdog.look()
    scene.clock.now += 9.0
    scene.watchdog.look()
    assert scene.told == []
    scene.clock.now += 2.0
    scene.watchdog.look()
    scene.watchdog.look()
    assert scene.told == [Stuck(culprit, 11.0, holds_others=True)]
    leave.set()


async def test_a_cancelled_analysis_that_goes_on_is_told_of_once(scene: Scene) -> None:
    stubborn = analysis()
    scene.running = [stubborn, analysis()]
    stubborn.ticket.cancel()
    assert stubborn.ticket.cancelled_at is not None
    scene.clock.now = stubborn.ticket.cancelled_at + 9.0
    scene.watchdog.look()
    assert scene.told == []
    scene.clock.now += 2.0
    scene.watchdog.look()
    scene.turned()
    scene.watchdog.look()
    assert [(found.analysis, found.holds_others) for found in scene.told] == [(stubborn, False)]


async def test_a_reduce_that_does_not_return_is_told_of_once_with_whose_it_is(scene: Scene) -> None:
    culprit, bystander = analysis(), analysis()
    scene.running = [bystander, culprit]
    scene.holding = [(culprit.ticket, scene.clock.now)]
    scene.clock.now += 9.0
    scene.watchdog.look()
    assert scene.told == []
    for _ in range(3):
        scene.clock.now += 2.0
        scene.turned()
        scene.watchdog.look()
    assert scene.told == [Stuck(culprit, 11.0, holds_others=True)]
    scene.holding = [(bystander.ticket, scene.clock.now)]
    scene.running = []
    scene.clock.now += 10.0
    scene.turned()
    scene.watchdog.look()
    assert scene.told[1:] == [Stuck(None, 10.0, holds_others=True)], "its caller may be gone"


async def test_time_in_which_the_whole_process_stood_still_is_nobodys(scene: Scene) -> None:
    stubborn, reduces = analysis(), analysis()
    scene.running = [stubborn, reduces]
    stubborn.ticket.cancel()
    assert stubborn.ticket.cancelled_at is not None
    scene.clock.now = stubborn.ticket.cancelled_at
    scene.holding = [(reduces.ticket, scene.clock.now)]
    scene.clock.now += 300.0
    scene.watchdog.resumed()
    scene.watchdog.look()
    scene.clock.now += 9.0
    scene.watchdog.look()
    assert scene.told == []
    scene.clock.now += 2.0
    scene.turned()
    scene.watchdog.look()
    assert {id(found.analysis) for found in scene.told} == {id(stubborn), id(reduces)}
    assert [found.seconds for found in scene.told] == pytest.approx([11.0, 11.0])


@pytest.mark.parametrize(("step", "stood_still"), [(0.0, False), (60.0, True)])
def test_a_gap_between_two_looks_is_such_a_time(step: float, stood_still: bool) -> None:
    """A clock that is asked again after a short wait, and says that more has passed."""
    clock, loop, looks = Clock(), AnalysisLoop(), threading.Semaphore(0)

    def tick() -> float:
        clock.now += step
        return clock.now

    def running() -> list[Analysis]:
        looks.release()
        return []

    watchdog = Watchdog(loop, running, lambda _: None, stall_s=0.1, clock=tick)
    resumed: list[float] = []
    watchdog.resumed = lambda: resumed.append(clock.now)
    watchdog.start()
    for _ in range(3):
        assert looks.acquire(timeout=60)
    watchdog.close()
    loop.close()
    assert bool(resumed) is stood_still


class Hold(Analyzer):
    """Blocks the loop it should share."""

    name = "hold"

    def __init__(self) -> None:
        self.entered, self.leave = threading.Event(), threading.Event()

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(model=False)

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        self.entered.set()
        self.leave.wait(60)
        yield Record("r", {})


async def test_the_caller_of_an_analyzer_that_holds_the_loop_is_told(make_rig: Any) -> None:
    rig, hold = make_rig(max_stall_s=0.5), Hold()
    stream = rig.start(hold)
    try:
        with pytest.raises(Internal) as failed:
            async for _ in stream:
                pass
        assert failed.value.reason == "ANALYZER_STUCK"
        assert "hold" in failed.value.message
    finally:
        hold.leave.set()
    await rig.settled()


class Hang(Analyzer):
    """Its reduce keeps the device thread."""

    name = "hang"

    def __init__(self) -> None:
        self.leave = threading.Event()

    def hang(self, stack: Any, view: Any) -> list[int]:
        self.leave.wait(60)
        return [0] * len(stack.tokens)

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        capture = Capture(frozenset({Site.FINAL_RESIDUAL}), reduce=Reduce(self.hang))
        await ctx.model.forward([Row(ctx.model.encode("x"))], capture)
        yield Record("r", {})


async def test_the_caller_of_a_reduce_that_holds_the_device_is_told(make_rig: Any) -> None:
    rig, hang = make_rig(max_stall_s=0.5), Hang()
    stream = rig.start(hang)
    try:
        with pytest.raises(Internal) as failed:
            async for _ in stream:
                pass
        assert failed.value.reason == "ANALYZER_STUCK"
    finally:
        hang.leave.set()
    await rig.settled()


class Overlong(Analyzer):
    """A piece of its own computing does not end."""

    name = "overlong"

    def __init__(self) -> None:
        self.inside, self.leave = threading.Event(), threading.Event()

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(model=False)

    def piece(self) -> None:
        self.inside.set()
        assert self.leave.wait(60)

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        await ctx.compute(self.piece)
        yield Record("r", {})


class PlainOverlong(Overlong):
    """The same on a thread of its own."""

    name = "plain-overlong"

    def analyze(self, params: Any, ctx: Any) -> Iterator[Any]:
        ctx.compute(self.piece)
        yield Record("r", {})


class Reads(Analyzer):
    """Needs a forward."""

    name = "reads"

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        await ctx.model.forward([Row((5, 6))], Capture(frozenset({Site.FINAL_RESIDUAL})))
        yield Record("r", {})


class Computes(Overlong):
    """Wants to compute for a moment."""

    name = "computes"

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {"one": await ctx.compute(lambda: 1)})


@pytest.fixture
def one_turn(make_rig: Any, tiny: Any) -> Any:
    """A rig with one turn for its model and what analyzers compute, as the daemon has on a CPU."""
    rig = make_rig(max_stall_s=0.5)
    rig.executor._computing.device.turn = tiny("llama").device.turn
    return rig


@pytest.mark.parametrize("waiting", [Reads, Computes])
@pytest.mark.parametrize("overlong", [Overlong, PlainOverlong])
async def test_the_caller_of_a_computation_that_others_wait_for_is_told(
    one_turn: Any, overlong: type[Overlong], waiting: type[Analyzer]
) -> None:
    rig, holds = one_turn, overlong()
    held = asyncio.ensure_future(rig.results(holds))
    assert await asyncio.to_thread(holds.inside.wait, 60)
    others = asyncio.ensure_future(rig.results(waiting()))
    try:
        with pytest.raises(Internal) as failed:
            await held
        assert failed.value.reason == "ANALYZER_STUCK"
        assert "short piece" in failed.value.message
    finally:
        holds.leave.set()
    assert len(await others) == 1
    await rig.settled()


async def test_a_computation_is_watched_when_its_caller_is_gone(one_turn: Any) -> None:
    rig, holds, told = one_turn, Overlong(), SimpleQueue[Stuck]()
    rig.executor._when_stuck = told.put
    with pytest.raises(DeadlineExceeded):
        await rig.results(holds, request={"deadline": time.monotonic() + 0.2})
    assert holds.inside.is_set()
    await rig.settled()
    others = asyncio.ensure_future(rig.results(Reads()))
    try:
        found = await asyncio.to_thread(told.get, True, 60)
    finally:
        holds.leave.set()
    assert (found.analysis, found.analyzer, found.holds_others) == (None, "overlong", True)
    assert len(await others) == 1


def registry() -> AnalyzerRegistry:
    record = PluginRecord("p", "dist", "1.0", PluginStatus.ACTIVE, "", ("hold",))
    return AnalyzerRegistry(
        [LoadedPlugin(record)], {"hold": RegisteredAnalyzer(Hold(), "hold", "dist", "1.0")}
    )


async def test_its_plugin_is_quarantined_and_a_held_process_given_up() -> None:
    plugins = registry()
    policy, given_up = StuckAnalyzers(plugins), list[str]()
    policy.when_held(given_up.append)
    found = analysis()
    found.distribution = "dist"
    policy(Stuck(found, 31.0, holds_others=False))
    assert given_up == []
    assert plugins.analyzers() == []
    assert [(p.status, p.problem) for p in plugins.plugins()] == [
        (PluginStatus.QUARANTINED, "analyzer a went on after it was cancelled for 31 s")
    ]
    with pytest.raises(FailedPrecondition, match="switched off") as refused:
        plugins.resolve("hold")
    assert refused.value.reason == "PLUGIN_QUARANTINED"
    assert plugins.release("dist"), "its thread holds up nobody"
    assert [analyzer.name for analyzer in plugins.analyzers()] == ["hold"]
    policy(Stuck(found, 31.0, holds_others=False))
    policy(Stuck(found, 31.0, holds_others=True))
    assert given_up == ["analyzer a held up all others for 31 s"]
    with pytest.raises(FailedPrecondition, match=r"cannot be released.*started anew") as hangs:
        plugins.release("dist")
    assert hangs.value.reason == "PLUGIN_HANGS"
    assert plugins.plugins()[0].problem == "analyzer a held up all others for 31 s"
    policy(Stuck(None, 31.0, holds_others=True, ticket=Ticket(analyzer="gone")))
    assert given_up[-1] == "analyzer gone held up all others for 31 s"
