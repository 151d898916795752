"""Whatever point a cancel comes at, it leaves nothing behind and the model as it was."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import torch

from lensd_api import Analyzer, BaseParams, Cancelled, Capture, PluginFailure, Record, Row, Site
from lensd_server.engine.events import Found
from lensd_server.engine.observers import BatchRecord, Observers
from lensd_server.tiny_engine import hook_count, weights_digest

SITES = frozenset({Site.FINAL_RESIDUAL, Site.HEADS, Site.ATTENTION})


class Steps(Analyzer):
    """Forwards, computes and yields in turn; notes that its clean-up ran."""

    name = "steps"

    class Params(BaseParams):
        fail: bool = False

    def __init__(self) -> None:
        self.closed = threading.Event()

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        try:
            ids = ctx.model.encode("The capital of France is")
            for step in range(3):
                await ctx.model.forward([Row(ids[: step + 2]), Row(ids)], Capture(SITES, positions="all"))
                ctx.progress(step, 3)
                await ctx.compute(lambda: None)
                yield Record("step", {"step": step}, item=str(step))
            if params.fail:
                raise KeyError
        finally:
            self.closed.set()


class PlainSteps(Steps):
    """The same on a thread."""

    name = "plain-steps"

    def analyze(self, params: Any, ctx: Any) -> Iterator[Any]:
        try:
            ids = ctx.model.encode("The capital of France is")
            for step in range(3):
                ctx.model.forward([Row(ids[: step + 2]), Row(ids)], Capture(SITES, positions="all"))
                ctx.progress(step, 3)
                yield Record("step", {"step": step}, item=str(step))
            if params.fail:
                raise KeyError
        finally:
            self.closed.set()


def state_of(model: Any) -> tuple[int, str, torch.Tensor]:
    module = model.module
    with torch.inference_mode():
        logits = module(input_ids=torch.tensor([[5, 6, 7, 8]]), use_cache=False).logits
    return hook_count(module), weights_digest(module), logits


async def assert_nothing_is_left(rig: Any, before: tuple[int, str, torch.Tensor]) -> None:
    await rig.settled()
    resident = rig.resident("llama")
    await asyncio.to_thread(resident.batcher.settle)
    assert rig.residency.leases("llama") == 0
    assert resident.batcher.waiting() == (0, 0)
    assert rig.executor.running() == []
    hooks, digest, logits = state_of(resident.loaded.model)
    assert (hooks, digest) == before[:2]
    assert torch.equal(logits, before[2])


@pytest.mark.parametrize("kind", [Steps, PlainSteps])
@pytest.mark.parametrize("after", range(6))
async def test_cancelling_after_any_event_leaves_nothing(rig: Any, kind: type[Steps], after: int) -> None:
    await rig.events(kind())
    before = state_of(rig.resident("llama").loaded.model)
    analyzer = kind()
    stream = rig.start(analyzer)
    for _ in range(after):
        await anext(stream)
    await stream.aclose()
    await assert_nothing_is_left(rig, before)
    # Closed before the first event it may never have begun.
    assert analyzer.closed.is_set() or after <= 1


@pytest.mark.parametrize("kind", [Steps, PlainSteps])
@pytest.mark.parametrize("fail", [False, True])
async def test_success_and_failure_leave_the_model_as_it_was(rig: Any, kind: type[Steps], fail: bool) -> None:
    await rig.events(kind())
    before = state_of(rig.resident("llama").loaded.model)
    if fail:
        with pytest.raises(PluginFailure):
            await rig.events(kind(), fail=True)
    else:
        await rig.events(kind())
    await assert_nothing_is_left(rig, before)


@pytest.mark.parametrize("kind", [Steps, PlainSteps])
async def test_cancelling_the_task_that_reads_cancels_the_analysis(rig: Any, kind: type[Steps]) -> None:
    await rig.events(kind())
    before = state_of(rig.resident("llama").loaded.model)
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in rig.start(kind()):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await assert_nothing_is_left(rig, before)


class Waiting(Analyzer):
    """Queues rows while the test holds the device."""

    name = "waiting"

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        yield Record("before", {})
        await ctx.model.forward([Row((5, 6))] * 7, Capture(SITES))
        yield Record("after", {})


class PlainWaiting(Waiting):
    """The same on a thread."""

    name = "plain-waiting"

    def analyze(self, params: Any, ctx: Any) -> Iterator[Any]:
        yield Record("before", {})
        ctx.model.forward([Row((5, 6))] * 7, Capture(SITES))
        yield Record("after", {})


class Queue:
    """Sets ``full`` once seven rows wait."""

    def __init__(self) -> None:
        self.full = threading.Event()
        self.rows = 0

    def batch_ran(self, batch: BatchRecord) -> None: ...

    def cancel_took(self, model: str, seconds: float) -> None: ...

    def queue_changed(self, model: str, rows: int, tokens: int) -> None:
        self.rows += rows
        if self.rows == 7:
            self.full.set()


@pytest.fixture
async def held(make_rig: Any) -> Any:
    """A rig with Llama resident, and what its queue holds."""
    queue = Queue()
    rig = make_rig(observers=Observers(batches=[queue]))
    await rig.events(Steps())
    return rig, queue


async def queued(rig: Any, queue: Queue, kind: type[Waiting]) -> Any:
    """A stream whose rows wait because something else has the device."""
    stream = rig.start(kind())
    while not isinstance(await anext(stream), Found):
        pass
    assert await asyncio.to_thread(queue.full.wait, 60)
    assert rig.executor.running()[0].pending_rows == 7
    return stream


@pytest.mark.parametrize("kind", [Waiting, PlainWaiting])
async def test_rows_leave_the_queue_the_moment_the_reader_goes(held: Any, kind: type[Waiting]) -> None:
    rig, queue = held
    batcher = rig.resident("llama").batcher
    with rig.resident("llama").loaded.device.turn:
        stream = await queued(rig, queue, kind)
        await stream.aclose()
        assert batcher.waiting() == (0, 0)
        await rig.settled()
        assert rig.residency.leases("llama") == 0


@pytest.mark.parametrize("kind", [Waiting, PlainWaiting])
async def test_an_operator_can_cancel_by_request_id(held: Any, kind: type[Waiting]) -> None:
    rig, queue = held
    with rig.resident("llama").loaded.device.turn:
        stream = await queued(rig, queue, kind)
        assert not rig.executor.cancel("somebody-else")
        assert rig.executor.cancel("r")
        with pytest.raises(Cancelled, match="operator"):
            await anext(stream)
        await rig.settled()
    assert rig.resident("llama").batcher.waiting() == (0, 0)


async def test_a_plain_generator_learns_of_the_cancel_at_its_next_call(rig: Any) -> None:
    resumed, go, noticed = threading.Event(), threading.Event(), threading.Event()

    class Busy(Analyzer):
        """Computes, then looks up."""

        name = "busy"

        def analyze(self, params: Any, ctx: Any) -> Iterator[Any]:
            yield Record("r", {})
            resumed.set()
            go.wait(60)
            assert ctx.cancelled
            try:
                ctx.progress(1)
            except Cancelled:
                noticed.set()
                raise

    stream = rig.start(Busy())
    while not isinstance(await anext(stream), Found):
        pass
    # The result arrives before its generator goes on: cancelled there, it would end at its `yield`.
    assert await asyncio.to_thread(resumed.wait, 60)
    await stream.aclose()
    go.set()
    await rig.settled()
    assert noticed.is_set()


async def test_an_analyzer_that_swallows_the_cancel_is_stopped_at_its_next_call(rig: Any) -> None:
    began = threading.Event()

    class Stubborn(Analyzer):
        """Catches whatever comes."""

        name = "stubborn"

        async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
            try:
                began.set()
                await asyncio.Event().wait()
            except BaseException:
                pass
            yield Record("r", {"forward": await ctx.model.forward([Row((5,))], Capture(SITES))})

    await rig.events(Steps())
    stream = rig.start(Stubborn())
    await anext(stream)
    assert await asyncio.to_thread(began.wait, 60)
    await stream.aclose()
    await rig.settled()
    assert rig.residency.leases("llama") == 0
