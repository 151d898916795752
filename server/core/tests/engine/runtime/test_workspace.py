"""Work of an analyzer's own on its model's device, as far as a CPU under another name can show it."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lensd_api import Analyzer, Capture, DeviceLost, Exhausted, Record, Row, Site
from lensd_server.engine.batching.turn import Turn
from lensd_server.engine.device import Device
from lensd_server.engine.events import Found
from lensd_server.engine.models.loading import LoadedModel
from server.core.tests.engine.runtime.bounded import FakeDevices

#: The model has a part of the budget, the tests want to know of the rest.
GPU, BUDGET = "cuda:0", 1 << 30
PATIENCE_S = 60


class PretendedGpu(Device):
    """The CPU under another name, with a turn of its own; counts how often memory was given back."""

    name, is_cpu, stream = GPU, False, None

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.released = threading.Semaphore(0)

    def put(self, tensor: Tensor) -> Tensor:
        return tensor

    def synchronize(self) -> None:
        """Nothing is queued on it."""

    def release(self) -> None:
        self.released.release()


class OnGpu:
    """Puts a tiny model there."""

    def __init__(self, tiny: Callable[[str], LoadedModel]) -> None:
        self.device = PretendedGpu()
        self._tiny = tiny

    def load(self, name: str, settings: Any, report: Any, claim: Any) -> LoadedModel:
        report("read", 0.5)
        return replace(self._tiny("llama"), device=self.device)


class Working(Analyzer):
    """Does what its test tells it to."""

    name = "working"

    def __init__(self, body: Callable[[Any], Any]) -> None:
        self.body = body

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        async for result in self.body(ctx):
            yield result


class PlainWorking(Working):
    """The same on a thread."""

    name = "plain-working"

    def analyze(self, params: Any, ctx: Any) -> Iterator[Any]:
        yield from self.body(ctx)


@pytest.fixture
def loader(tiny: Any) -> OnGpu:
    return OnGpu(tiny)


@pytest.fixture
def rig(make_rig: Any, loader: OnGpu) -> Any:
    return make_rig(loader=loader, devices=FakeDevices("cpu", GPU), memory_bytes={GPU: BUDGET})


def left(rig: Any) -> int:
    """Bytes of the GPU's budget that nobody has."""
    (memory,) = [memory for memory in rig.residency.memory() if memory.device == GPU]
    return memory.budget - memory.reserved


async def left_beside_its_model(rig: Any) -> int:
    """The same once the model is there."""
    async for _ in rig.residency.load("llama"):
        pass
    return left(rig)


async def test_a_workspace_is_on_the_models_device_and_set_aside_until_its_end(rig: Any, loader: Any) -> None:
    whole = await left_beside_its_model(rig)

    async def body(ctx: Any) -> AsyncIterator[Any]:
        async with ctx.workspace(600) as work:
            thread = await work.compute(lambda: threading.current_thread().name)
            yield Record("r", {"device": work.device, "taken": whole - left(rig), "thread": thread})

    (found,) = await rig.results(Working(body))
    assert found.values == {"device": GPU, "taken": 600, "thread": "lensd-compute"}
    assert loader.device.released.acquire(timeout=PATIENCE_S)
    await asyncio.to_thread(_join_computing)
    assert left(rig) == whole


async def test_what_does_not_fit_is_refused_with_both_numbers_and_sets_nothing_aside(rig: Any) -> None:
    whole = await left_beside_its_model(rig)

    async def body(ctx: Any) -> AsyncIterator[Any]:
        async with ctx.workspace(whole - 400):
            async with ctx.workspace(401):
                yield Record("r", {})

    with pytest.raises(Exhausted, match="needs 401 bytes on cuda:0 beside its model, where 400") as refused:
        await rig.results(Working(body))
    assert refused.value.reason == "NO_ROOM"
    assert refused.value.metadata == {"needed_bytes": "401", "left_bytes": "400", "device": GPU}
    assert left(rig) == whole


async def test_memory_that_others_use_is_not_given_to_a_workspace(make_rig: Any, loader: Any) -> None:
    devices = FakeDevices("cpu", GPU, others={GPU: 800}, size=1000)
    rig = make_rig(loader=loader, devices=devices, memory_bytes={GPU: BUDGET})

    async def body(ctx: Any) -> AsyncIterator[Any]:
        async with ctx.workspace(201):
            yield Record("r", {})

    with pytest.raises(Exhausted, match="where 200"):
        await rig.results(Working(body))


async def test_work_on_the_device_and_forwards_of_its_model_take_turns(rig: Any, loader: Any) -> None:
    turn = loader.device.turn
    await left_beside_its_model(rig)

    async def body(ctx: Any) -> AsyncIterator[Any]:
        async with ctx.workspace(1) as work:
            row, capture = Row((5, 6)), Capture(frozenset({Site.FINAL_RESIDUAL}))
            forward = asyncio.ensure_future(ctx.model.forward([row], capture))
            step = asyncio.ensure_future(work.compute(lambda: turn._taken))
            await forward
            yield Record("step", {"in_turn": await step})

    with turn:  # somebody else has the device, from before the analysis begins
        results = asyncio.ensure_future(rig.results(Working(body)))
        await asyncio.to_thread(_until_waiting, turn, 2)
        assert not results.done()
    (step,) = await results
    assert step.values == {"in_turn": True}
    # The device thread gives its turn back a moment after it has answered.
    await asyncio.wait_for(asyncio.to_thread(_take_and_leave, turn), PATIENCE_S)


async def test_memory_is_set_aside_until_the_last_piece_of_a_cancelled_analysis_has_ended(
    rig: Any, loader: Any
) -> None:
    inside, go = threading.Event(), threading.Event()
    whole = await left_beside_its_model(rig)

    def piece() -> None:
        inside.set()
        assert go.wait(PATIENCE_S)

    async def body(ctx: Any) -> AsyncIterator[Any]:
        async with ctx.workspace(600) as work:
            yield Record("r", {})
            await work.compute(piece)

    stream = rig.start(Working(body))
    while not isinstance(await anext(stream), Found):
        pass
    more = asyncio.ensure_future(anext(stream))
    assert await asyncio.to_thread(inside.wait, PATIENCE_S)
    more.cancel()
    with pytest.raises(asyncio.CancelledError):
        await more
    await stream.aclose()
    await rig.settled()
    assert left(rig) == whole - 600
    go.set()
    assert await asyncio.to_thread(loader.device.released.acquire, True, PATIENCE_S)
    await asyncio.to_thread(_join_computing)
    assert left(rig) == whole


async def test_nothing_is_computed_after_the_end_of_a_workspace(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        async with ctx.workspace(1) as work:
            pass
        with pytest.raises(RuntimeError, match="outside of its workspace"):
            await work.compute(int)
        yield Record("r", {})

    assert len(await rig.results(Working(body))) == 1


async def test_a_piece_of_work_that_would_wait_for_itself_is_refused(rig: Any) -> None:
    capture = Capture(frozenset({Site.FINAL_RESIDUAL}))

    def body(ctx: Any) -> Iterator[Any]:
        with ctx.workspace(1) as work:
            with pytest.raises(RuntimeError, match="has its device's turn already"):
                work.compute(lambda: work.compute(int))
            with pytest.raises(RuntimeError, match="ask outside of it"):
                work.compute(ctx.model.forward, [Row((5, 6))], capture)
            yield Record("r", {"one": work.compute(lambda: 1)})

    (found,) = await rig.results(PlainWorking(body))
    assert found.values == {"one": 1}


async def test_nor_does_the_thread_that_async_analyzers_share_wait_for_itself(rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        with pytest.raises(RuntimeError, match="cannot compute another"):
            await ctx.compute(lambda: asyncio.run(ctx.compute(int)))
        yield Record("r", {"one": await ctx.compute(lambda: 1)})

    (found,) = await rig.results(Working(body))
    assert found.values == {"one": 1}


async def test_on_the_cpu_nothing_is_set_aside(make_rig: Any, rig: Any) -> None:
    async def body(ctx: Any) -> AsyncIterator[Any]:
        async with ctx.workspace(2 * BUDGET, **chosen) as work:
            yield Record("r", {"device": work.device, "seven": await work.compute(lambda: 7)})

    chosen: dict[str, str] = {"device": "cpu"}
    (beside_a_gpu,) = await rig.results(Working(body))
    chosen.clear()
    (own,) = await make_rig(memory_bytes=BUDGET).results(Working(body))
    assert beside_a_gpu.values == own.values == {"device": "cpu", "seven": 7}


async def test_a_plain_generator_has_the_same(rig: Any, loader: Any) -> None:
    whole = await left_beside_its_model(rig)

    def body(ctx: Any) -> Iterator[Any]:
        with ctx.workspace(600) as work:
            in_turn = work.compute(lambda: loader.device.turn._taken)
            yield Record("r", {"device": work.device, "taken": whole - left(rig), "in_turn": in_turn})
        with ctx.workspace(whole + 1, device="cpu") as work:
            yield Record("s", {"device": work.device})
        with ctx.workspace(whole + 1):
            yield Record("never", {})

    found: list[Any] = []
    with pytest.raises(Exhausted, match=f"where {whole}"):
        async with aclosing(rig.start(PlainWorking(body))) as stream:
            async for event in stream:
                found += [event.result.values] if isinstance(event, Found) else []
    assert found == [{"device": GPU, "taken": 600, "in_turn": True}, {"device": "cpu"}]
    assert left(rig) == whole


def _until_waiting(turn: Turn, count: int) -> None:
    pause, deadline = threading.Event(), time.monotonic() + PATIENCE_S
    while len(turn._waiting) < count:
        assert time.monotonic() < deadline, f"{len(turn._waiting)} of {count} wait"
        pause.wait(0.001)


def _take_and_leave(turn: Turn) -> None:
    with turn:
        pass


def _join_computing() -> None:
    """Until every workspace's thread has ended; the executor's own for the CPU never began."""
    for thread in threading.enumerate():
        if thread.name == "lensd-compute":
            thread.join(PATIENCE_S)


@pytest.mark.parametrize("kind", [Working, PlainWorking])
async def test_work_that_breaks_the_device_ends_the_server_at_once(
    make_rig: Any, loader: Any, kind: type[Working]
) -> None:
    """The next batch would find out as well, but it may be long until one comes."""
    rig = make_rig(loader=loader, devices=FakeDevices("cpu", GPU), memory_bytes={GPU: BUDGET})
    lost: list[str] = []
    rig.residency._loads._when_lost = lost.append

    def breaks() -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    async def body(ctx: Any) -> AsyncIterator[Any]:
        async with ctx.workspace(1) as work:
            await work.compute(breaks)
        yield Record("r", {})

    def plain(ctx: Any) -> Iterator[Any]:
        with ctx.workspace(1) as work:
            work.compute(breaks)
        yield Record("r", {})

    with pytest.raises(DeviceLost):
        await rig.results(kind(body if kind is Working else plain))
    assert lost == ["cuda:0 failed under model llama"]


def test_a_fault_that_a_library_names_otherwise_is_known_by_what_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = PretendedGpu()
    vague = RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm`")
    assert not device.is_lost(vague)

    def broken() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(device, "synchronize", broken)
    assert device.is_lost(vague)
    assert not device.is_lost(ValueError("no"))
    assert not device.is_lost(torch.OutOfMemoryError("CUDA out of memory"))
