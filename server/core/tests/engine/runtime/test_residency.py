"""Models come, are held, and go."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any

import pytest

from lensd_api import DeadlineExceeded, Draining, LensdError, LoadFailed, UnknownModel
from lensd_server.engine.events import LoadStep, ModelState
from lensd_server.engine.models.loading import LoadedModel
from lensd_server.engine.models.loads import MAX_BACKOFF_S
from lensd_server.engine.models.residency import Residency
from lensd_server.engine.observers import Observers
from lensd_server.settings import ModelSettings


class HeldLoader:
    """Loads a tiny model when the test says so, or fails as the test says."""

    def __init__(self, tiny: Callable[[str], LoadedModel]) -> None:
        self.tiny = tiny
        self.loads = 0
        self.go = threading.Event()
        self.go.set()
        self.entered = threading.Event()
        self.fault: BaseException | None = None

    def load(
        self, name: str, settings: ModelSettings, report: Callable[[str, float], None], claim: Any
    ) -> LoadedModel:
        self.loads += 1
        report("read", 0.5)
        self.entered.set()
        assert self.go.wait(60)
        report("verify", 0.7)
        if self.fault is not None:
            raise self.fault
        return self.tiny("llama")


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def loader(tiny: Any) -> HeldLoader:
    return HeldLoader(tiny)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def residency(loader: HeldLoader, clock: Clock) -> Any:
    models = {name: ModelSettings(source=f"dir:/{name}") for name in ("beta", "alpha")}
    made = Residency(models, loader, clock=clock)
    yield made
    loader.go.set()
    made.close()


async def load(residency: Residency, name: str = "alpha") -> list[LoadStep]:
    return [step async for step in residency.load(name)]


def test_models_are_cold_until_somebody_wants_them(residency: Residency, loader: HeldLoader) -> None:
    assert [(s.name, s.state) for s in residency.statuses()] == [
        ("alpha", ModelState.COLD),
        ("beta", ModelState.COLD),
    ]
    assert loader.loads == 0


async def test_a_load_tells_how_far_it_is_and_ends_resident(residency: Residency, loader: HeldLoader) -> None:
    loader.go.clear()
    steps: list[LoadStep] = []
    async for step in residency.load("alpha"):
        steps.append(step)
        loader.go.set()
    assert steps[0].status.state is ModelState.LOADING
    assert steps[-1].status.state is ModelState.RESIDENT
    assert steps[-1].fraction == 1.0
    assert [s.fraction for s in steps] == sorted(s.fraction for s in steps)
    status = residency.status("alpha")
    assert status.anatomy is not None
    assert (status.device, status.dtype) == ("cpu", "float32")
    assert status.resident_bytes >= 4 * status.parameters > 0
    assert residency.status("beta").state is ModelState.COLD


async def test_many_ask_and_one_loads(residency: Residency, loader: HeldLoader) -> None:
    loader.go.clear()

    async def hold() -> int:
        async with residency.lease("alpha"):
            return residency.leases("alpha")

    watching = [asyncio.ensure_future(load(residency)) for _ in range(3)]
    holding = [asyncio.ensure_future(hold()) for _ in range(5)]
    await asyncio.sleep(0)
    loader.go.set()
    assert all(steps[-1].status.state is ModelState.RESIDENT for steps in await asyncio.gather(*watching))
    assert all(await asyncio.gather(*holding))
    assert loader.loads == 1
    assert residency.leases("alpha") == 0


async def test_loading_what_is_resident_answers_at_once(residency: Residency, loader: HeldLoader) -> None:
    await load(residency)
    (step,) = await load(residency)
    assert step.status.state is ModelState.RESIDENT
    assert loader.loads == 1


async def test_a_watcher_that_leaves_does_not_stop_the_load(residency: Residency, loader: HeldLoader) -> None:
    loader.go.clear()
    async with aclosing(residency.load("alpha")) as steps:
        assert (await anext(steps)).status.state is ModelState.LOADING
    loader.go.set()
    async with residency.lease("alpha"):
        pass
    assert loader.loads == 1


async def test_a_failed_load_keeps_its_reason_and_backs_off(
    residency: Residency, loader: HeldLoader, clock: Clock
) -> None:
    loader.fault = LoadFailed("dir:/alpha: no such folder")
    with pytest.raises(LoadFailed, match="no such folder"):
        await load(residency)
    status = residency.status("alpha")
    assert (status.state, status.problem) == (ModelState.FAILED, "dir:/alpha: no such folder")

    with pytest.raises(LoadFailed, match="no such folder") as refused:
        async with residency.lease("alpha"):
            pass
    assert loader.loads == 1, "the back-off holds"
    assert refused.value.retry_after_s == pytest.approx(2.0)

    clock.now += 2.5
    loader.fault = None
    async with residency.lease("alpha"):
        assert loader.loads == 2
    assert residency.status("alpha").problem == ""


async def test_the_back_off_doubles_up_to_a_limit(
    residency: Residency, loader: HeldLoader, clock: Clock
) -> None:
    loader.fault = LoadFailed("no")
    waits: list[float] = []
    for _ in range(12):
        with pytest.raises(LoadFailed):
            async with residency.lease("alpha"):
                pass
        with pytest.raises(LoadFailed) as refused:
            async with residency.lease("alpha"):
                pass
        assert refused.value.retry_after_s is not None
        waits.append(refused.value.retry_after_s)
        clock.now += refused.value.retry_after_s
    assert waits[:4] == pytest.approx([2, 4, 8, 16])
    assert waits[-1] == MAX_BACKOFF_S


async def test_an_operator_may_try_again_at_once(residency: Residency, loader: HeldLoader) -> None:
    loader.fault = LoadFailed("no")
    with pytest.raises(LoadFailed):
        await load(residency)
    loader.fault = None
    assert (await load(residency))[-1].status.state is ModelState.RESIDENT


@pytest.mark.parametrize("fault", [RuntimeError("a path"), SystemExit(1)])
async def test_a_foreign_fault_fails_the_load_without_its_text(
    residency: Residency, loader: HeldLoader, fault: BaseException
) -> None:
    loader.fault = fault
    with pytest.raises(LoadFailed) as failed:
        await load(residency)
    assert "a path" not in failed.value.message
    assert failed.value.metadata["error_id"] in residency.status("alpha").problem


async def test_a_load_that_runs_out_of_memory_says_so(residency: Residency, loader: HeldLoader) -> None:
    loader.fault = MemoryError()
    with pytest.raises(LoadFailed, match="ran out of memory") as failed:
        await load(residency)
    assert failed.value.reason == "DEVICE_OOM"


async def test_unloading_waits_for_leases_and_refuses_new_ones(residency: Residency) -> None:
    async with residency.lease("alpha") as model:
        unloading = asyncio.ensure_future(residency.unload("alpha"))
        await asyncio.sleep(0)
        assert residency.status("alpha").state is ModelState.DRAINING
        with pytest.raises(Draining):
            async with residency.lease("alpha"):
                pass
        assert not unloading.done()
        assert model.batcher.waiting() == (0, 0)
    status = await unloading
    assert status.state is ModelState.COLD
    assert residency.resident("alpha") is None


async def test_an_unload_that_is_given_up_leaves_the_model_serving(residency: Residency) -> None:
    async with residency.lease("alpha"):
        unloading = asyncio.ensure_future(residency.unload("alpha"))
        await asyncio.sleep(0)
        unloading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await unloading
        assert residency.status("alpha").state is ModelState.RESIDENT
        async with residency.lease("alpha"):
            assert residency.leases("alpha") == 2


async def test_an_unloaded_model_loads_again_on_demand(residency: Residency, loader: HeldLoader) -> None:
    await load(residency)
    await residency.unload("alpha")
    async with residency.lease("alpha"):
        assert loader.loads == 2


async def test_two_may_unload_at_once(residency: Residency) -> None:
    await load(residency)
    states = await asyncio.gather(residency.unload("alpha"), residency.unload("alpha"))
    assert [status.state for status in states] == [ModelState.COLD] * 2


async def test_unloading_what_failed_forgets_the_failure(residency: Residency, loader: HeldLoader) -> None:
    loader.fault = LoadFailed("no")
    with pytest.raises(LoadFailed):
        await load(residency)
    assert (await residency.unload("alpha")).problem == ""


async def test_an_exception_under_a_lease_gives_it_back(residency: Residency) -> None:
    with pytest.raises(LensdError):
        async with residency.lease("alpha"):
            raise LensdError("no")
    assert residency.leases("alpha") == 0


async def test_cancelling_while_waiting_for_a_load_leaves_no_lease(
    residency: Residency, loader: HeldLoader
) -> None:
    loader.go.clear()

    async def hold() -> None:
        async with residency.lease("alpha"):
            pass

    waiting = asyncio.ensure_future(hold())
    assert await asyncio.to_thread(loader.entered.wait, 60)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    loader.go.set()
    await load(residency)
    assert residency.leases("alpha") == 0


async def loaded_in(residency: Residency, loader: HeldLoader, clock: Clock, seconds: float) -> None:
    """Loads alpha in that time and unloads it."""
    loader.go.clear()
    loader.entered.clear()
    loading = asyncio.ensure_future(load(residency))
    assert await asyncio.to_thread(loader.entered.wait, 60)
    clock.now += seconds
    loader.go.set()
    await loading
    await residency.unload("alpha")


async def hold(residency: Residency, deadline: float | None = None) -> None:
    async with residency.lease("alpha", deadline=deadline):
        pass


async def test_a_deadline_too_short_for_the_load_is_refused_at_once_and_the_next_finds_the_model(
    residency: Residency, loader: HeldLoader, clock: Clock
) -> None:
    await loaded_in(residency, loader, clock, 7.0)
    loader.go.clear()
    loader.entered.clear()
    with pytest.raises(DeadlineExceeded, match=r"takes 7\.00 s .* deadline is in 1\.50 s") as refused:
        await hold(residency, clock.now + 1.5)
    assert refused.value.reason == "DEADLINE_TOO_SHORT"
    assert refused.value.retry_after_s == pytest.approx(7.0)
    assert (refused.value.metadata["needed_seconds"], refused.value.metadata["left_seconds"]) == (
        "7.000",
        "1.500",
    )
    assert await asyncio.to_thread(loader.entered.wait, 60)
    with pytest.raises(DeadlineExceeded):
        await hold(residency, clock.now + 1.5)
    clock.now += 6.0
    in_time = asyncio.ensure_future(hold(residency, clock.now + 1.5))
    await asyncio.sleep(0)
    loader.go.set()
    await in_time
    assert loader.loads == 2, "the load that the first began"


async def test_a_deadline_long_enough_for_the_load_is_let_wait(
    residency: Residency, loader: HeldLoader, clock: Clock
) -> None:
    await loaded_in(residency, loader, clock, 7.0)
    await hold(residency, clock.now + 7.5)
    assert loader.loads == 2


@pytest.mark.parametrize(("left_s", "loads"), [(0.0, 1), (0.05, 1), (30.0, 2)])
async def test_only_whoever_runs_out_of_time_leaves_the_load_to_the_next(
    tiny: Any, left_s: float, loads: int
) -> None:
    """A client that goes away at its deadline may be a little early."""
    loader, clock, ended = HeldLoader(tiny), Clock(), asyncio.Event()
    loop, outcomes = asyncio.get_running_loop(), list[str]()

    class Noting:
        def load_finished(self, model: str, outcome: str, seconds: float) -> None:
            outcomes.append(outcome)
            loop.call_soon_threadsafe(ended.set)

    models = {"alpha": ModelSettings(source="dir:/alpha")}
    residency = Residency(models, loader, clock=clock, observers=Observers(loads=[Noting()]))
    loader.go.clear()
    waiting = asyncio.ensure_future(hold(residency, clock.now + 40.0))
    assert await asyncio.to_thread(loader.entered.wait, 60)
    clock.now += 40.0 - left_s
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    loader.go.set()
    async with asyncio.timeout(60):
        await ended.wait()
    await hold(residency)
    residency.close()
    assert loader.loads == loads
    assert outcomes == (["ok"] if loads == 1 else ["cancelled", "ok"])


async def test_what_goes_on_for_the_next_ends_with_an_unload(
    residency: Residency, loader: HeldLoader, clock: Clock
) -> None:
    loader.go.clear()
    waiting = asyncio.ensure_future(hold(residency, clock.now))
    assert await asyncio.to_thread(loader.entered.wait, 60)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    unloading = asyncio.ensure_future(residency.unload("alpha"))
    await asyncio.sleep(0)
    loader.go.set()
    assert (await unloading).state is ModelState.COLD
    assert residency.resident("alpha") is None


async def test_watching_shows_every_model_then_each_change(residency: Residency) -> None:
    async with aclosing(residency.watch()) as changes:
        assert {(await anext(changes)).name for _ in range(2)} == {"alpha", "beta"}
        loading = asyncio.ensure_future(load(residency))
        states = []
        while not states or states[-1] is not ModelState.RESIDENT:
            status = await anext(changes)
            assert status.name == "alpha"
            states.append(status.state)
        await loading
        await residency.unload("alpha")
        while states[-1] is not ModelState.COLD:
            states.append((await anext(changes)).state)
    assert states[-1] is ModelState.COLD


async def test_an_unknown_name_lists_the_known(residency: Residency) -> None:
    with pytest.raises(UnknownModel, match="alpha, beta"):
        residency.status("gamma")
    with pytest.raises(UnknownModel):
        await load(residency, "gamma")


async def test_loads_are_counted(tiny: Any) -> None:
    class Noting:
        def __init__(self) -> None:
            self.outcomes: list[str] = []

        def load_finished(self, model: str, outcome: str, seconds: float) -> None:
            self.outcomes.append(outcome)

    noting, loader = Noting(), HeldLoader(tiny)
    residency = Residency({"a": ModelSettings(source="dir:/a")}, loader, observers=Observers(loads=[noting]))
    loader.fault = LoadFailed("no")
    with pytest.raises(LoadFailed):
        await load(residency, "a")
    loader.fault = None
    await load(residency, "a")
    residency.close()
    assert noting.outcomes == ["failed", "ok"]
