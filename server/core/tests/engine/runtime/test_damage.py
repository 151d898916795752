"""A model into whose weights an analyzer wrote goes, and comes back whole."""

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lensd_api import Capture, PluginFailure, Reduce, Row, Site, Unavailable
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.batching.turn import Turn
from lensd_server.engine.events import ModelState
from lensd_server.engine.handle import AsyncHandle
from lensd_server.engine.models.loading import LoadedModel
from lensd_server.engine.models.residency import Residency
from lensd_server.engine.models.slot import ResidentModel
from lensd_server.settings import ModelSettings
from lensd_server.tiny_engine import TinyLoader
from server.core.tests.engine.runtime.conftest import on_cpu

ROWS = [Row((1, 2, 3))]


class Loader:
    """Loads a tiny model, and counts; the second load waits until the test lets it go on."""

    def __init__(self, tiny: Callable[[str], LoadedModel]) -> None:
        self.tiny, self.loads = tiny, 0
        self.again = threading.Event()
        self.several = TinyLoader(Turn())

    def load(self, name: str, settings: ModelSettings, report: Any, claim: Any) -> LoadedModel:
        self.loads += 1
        assert self.loads == 1 or self.again.wait(60)
        if settings.replicas > 1:  # each with weights of its own
            return self.several.load(name, on_cpu("llama"), report)
        return self.tiny("llama")


@pytest.fixture
def loader(tiny: Any) -> Loader:
    return Loader(tiny)


@pytest.fixture
def blamed() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def residency(loader: Loader, blamed: list[tuple[str, str]]) -> Iterator[Residency]:
    models = {
        "lazy": ModelSettings(source="dir:/lazy"),
        "eager": ModelSettings(source="dir:/eager", preload=True),
        "twice": ModelSettings(source="dir:/twice", replicas=2),
    }
    made = Residency(models, loader, when_damaged=lambda *names: blamed.append(names))
    yield made
    loader.again.set()
    made.close()


def writing(stack: Any, model: Any, args: Any = None) -> list[int]:
    """A reduce that writes into the model; the same numbers, for the sake of the other tests."""
    model.unembed[0].mul_(1.0)
    return [0] * len(stack.args)


async def run(model: ResidentModel, reduce: Any = None, analyzer: str = "honest") -> Any:
    handle = AsyncHandle(model.loaded.card, model.batcher, Ticket(analyzer=analyzer))
    capture: Capture[Any] = Capture(
        frozenset({Site.FINAL_RESIDUAL}), reduce=None if reduce is None else Reduce(reduce)
    )
    return await handle.forward(ROWS, capture)


async def damage(model: ResidentModel) -> None:
    with pytest.raises(PluginFailure):
        await run(model, writing, "vandal")


async def until(residency: Residency, name: str, *states: ModelState) -> None:
    """Returns once ``name`` was in each of ``states``, in this order, as a watcher sees it."""
    left = list(states)
    async with asyncio.timeout(60):
        async for status in residency.watch():
            if status.name == name and status.state is left[0]:
                del left[0]
            if not left:
                return


async def test_a_damaged_model_is_out_of_service_at_once_and_its_analyzer_named(
    residency: Residency, blamed: list[tuple[str, str]]
) -> None:
    async with residency.lease("lazy") as model:
        await damage(model)
        status = residency.status("lazy")
        assert (status.state, status.leases) == (ModelState.DRAINING, 1)
        assert "vandal wrote into its weights" in status.detail
    assert blamed == [("vandal", "lazy")]


async def test_what_still_runs_on_a_damaged_model_is_told_to_try_again_and_keeps_it_until_its_end(
    residency: Residency, loader: Loader
) -> None:
    async with residency.lease("lazy") as mine:
        async with residency.lease("lazy") as other:
            await damage(other)
        with pytest.raises(Unavailable) as refused:
            await run(mine)
        assert (refused.value.reason, refused.value.retry_after_s) == ("MODEL_DAMAGED", 1.0)
        assert residency.resident("lazy") is mine, "a leased model was freed"
    await until(residency, "lazy", ModelState.COLD)
    assert (residency.resident("lazy"), loader.loads) == (None, 1)


async def test_the_next_request_waits_for_the_model_to_be_loaded_anew(
    residency: Residency, loader: Loader
) -> None:
    loader.again.set()
    async with residency.lease("lazy") as model:
        await damage(model)
        next_one = asyncio.ensure_future(answer(residency, "lazy"))
        await until(residency, "lazy", ModelState.DRAINING)
        assert not next_one.done()
    assert await next_one is not None
    assert (loader.loads, residency.status("lazy").state) == (2, ModelState.RESIDENT)


async def answer(residency: Residency, name: str) -> Any:
    async with residency.lease(name) as model:
        return await run(model)


async def test_a_preloaded_model_comes_back_unasked(residency: Residency, loader: Loader) -> None:
    async with residency.lease("eager") as model:
        await damage(model)
    await until(residency, "eager", ModelState.LOADING)
    loader.again.set()
    await until(residency, "eager", ModelState.RESIDENT)
    assert loader.loads == 2


async def test_a_damaged_model_that_is_unloaded_stays_away(residency: Residency, loader: Loader) -> None:
    async with residency.lease("eager") as model:
        await damage(model)
        gone = asyncio.ensure_future(residency.unload("eager"))
        await asyncio.sleep(0)
    assert (await gone).state is ModelState.COLD
    assert loader.loads == 1


async def test_an_unload_that_is_given_up_does_not_bring_damaged_weights_back(residency: Residency) -> None:
    async with residency.lease("lazy") as model:
        await damage(model)
        gone = asyncio.ensure_future(residency.unload("lazy"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.wait([gone])
        assert residency.status("lazy").state is ModelState.DRAINING


async def test_damage_by_an_analysis_that_was_given_up_frees_the_model_too(
    residency: Residency, loader: Loader
) -> None:
    entered, go = threading.Event(), threading.Event()

    def late(stack: Any, model: Any, args: Any = None) -> list[int]:
        entered.set()
        assert go.wait(60)
        return writing(stack, model)

    async with residency.lease("lazy") as model:
        running = asyncio.ensure_future(run(model, late, "vandal"))
        assert await asyncio.to_thread(entered.wait, 60)
        running.cancel()
        await asyncio.wait([running])
    go.set()
    await until(residency, "lazy", ModelState.COLD)
    assert residency.resident("lazy") is None


async def test_a_damaged_replica_leaves_the_other_serving(residency: Residency, loader: Loader) -> None:
    loader.again.set()
    async for _ in residency.load("twice"):
        pass
    async with residency.lease("twice") as model:
        await damage(model)
        assert residency.status("twice").state is ModelState.RESIDENT
        assert await answer(residency, "twice") is not None
        async with residency.lease("twice") as other:
            assert other is not model
    await until_gone(residency, model)
    assert len(residency.residents("twice")) == 1


async def until_gone(residency: Residency, model: ResidentModel) -> None:
    """Returns once ``model`` is not in memory any more, as a watcher sees it."""
    async with asyncio.timeout(60):
        async for _ in residency.watch():
            if model not in residency.residents("twice"):
                return
