"""A cancel is noticed at five points: at admission, in the queue, when a batch is built, between two forwards
and before each result. How long the device was still busy is told once, whichever it was."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from lensd_api import Analyzer, BaseParams, Cancelled, Capture, Cost, Record, Row, Site
from lensd_server.engine.batching.execution import BatchExecution
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.events import Found
from lensd_server.engine.observers import BatchRecord, Observers

SITES = frozenset({Site.FINAL_RESIDUAL})
PATIENCE_S = 60.0


class Latencies:
    """Notes how long devices were busy after a cancel; ``told`` is set then."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.told = threading.Event()
        self.queued = threading.Event()

    def batch_ran(self, batch: BatchRecord) -> None: ...

    def queue_changed(self, model: str, rows: int, tokens: int) -> None:
        if rows > 0:
            self.queued.set()

    def cancel_took(self, model: str, seconds: float) -> None:
        assert model == "llama"
        self.seconds.append(seconds)
        self.told.set()


class Warm(Analyzer):
    """Loads the model."""

    name = "warm"

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})


@pytest.fixture
async def watched(make_rig: Any) -> Any:
    """A rig with Llama resident, and the latencies of its cancels."""
    latencies = Latencies()
    rig = make_rig(observers=Observers(batches=[latencies]))
    await rig.events(Warm())
    return rig, latencies


async def until(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE_S)


async def first_result(stream: Any) -> None:
    while not isinstance(await anext(stream), Found):
        pass


class Blocked(Analyzer):
    """Holds its estimate until the test lets it go."""

    name = "blocked"

    def __init__(self) -> None:
        self.asked, self.go, self.analyzed = threading.Event(), threading.Event(), False

    def estimate(self, params: Any, card: Any) -> Cost:
        self.asked.set()
        self.go.wait(PATIENCE_S)
        return Cost(tokens=5)

    def analyze(self, params: Any, ctx: Any) -> Iterator[Any]:
        self.analyzed = True
        yield Record("r", {})


async def test_at_admission_nothing_is_accepted_counted_or_run(watched: Any) -> None:
    rig, latencies = watched
    analyzer = Blocked()
    stream = rig.start(analyzer)
    first = asyncio.ensure_future(anext(stream))
    await until(analyzer.asked)
    rig.executor.cancel("r")
    analyzer.go.set()
    with pytest.raises(Cancelled):
        await first
    await rig.settled()
    assert not analyzer.analyzed
    assert rig.residency.leases("llama") == 0
    assert latencies.seconds == [], "no device ever worked for it"


def test_at_admission_to_the_queue_a_cancelled_ticket_is_refused(bench: Any) -> None:
    ticket = Ticket()
    ticket.cancel()
    with pytest.raises(Cancelled):
        bench.submit([1, 2], ticket=ticket)
    assert bench.batcher.waiting() == (0, 0)


class Forwards(Analyzer):
    """Two forwards, one after the other, then a result."""

    name = "forwards"

    class Params(BaseParams):
        swallow: bool = False

    def __init__(self) -> None:
        self.reached: list[str] = []

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        for step in ("first", "second"):
            try:
                await ctx.model.forward([Row((5, 6))], Capture(SITES))
            except BaseException:
                if not params.swallow:
                    raise
            self.reached.append(step)
        yield Record("r", {}, item="2")


async def test_in_the_queue_rows_leave_at_once_and_the_device_is_free_for_others(watched: Any) -> None:
    rig, latencies = watched
    resident = rig.resident("llama")
    stream = rig.start(Forwards())
    with resident.loaded.device.turn:  # somebody else has it
        await first_result(stream)
        await until(latencies.queued)
        await stream.aclose()
        assert resident.batcher.waiting() == (0, 0)
        await until(latencies.told)
        await rig.settled()
    assert len(latencies.seconds) == 1


def test_when_a_batch_is_built_cancelled_rows_are_left_out(bench: Any) -> None:
    """Cancelled after the batch was taken out of the queue and before it runs."""
    loaded = bench.loaded
    gone, kept = Ticket(), Ticket()
    bench.occupy()
    futures = [bench.submit([7, 8, 9], ticket=gone), bench.submit([7, 8], ticket=kept)]
    with bench.batcher._changed:
        batch = bench.batcher._queue.take(0.0)
    assert len(batch.rows) == 2
    gone.cancel()
    bench.forwards.release()
    bench.batcher.settle()
    ran: list[Any] = []

    def run(model: Any, ids: Any, mask: Any, *rest: Any) -> Any:
        ran.append(mask.sum(-1).tolist())
        return bench.forwards(model, ids, mask, *rest)

    BatchExecution("llama", loaded.model, loaded.device, run, time.monotonic, lambda _: None).run(batch.rows)
    assert ran == [[2]]
    assert isinstance(bench.outcome(futures[0]).error, Cancelled)
    assert bench.outcome(futures[1]).error is None


def test_a_batch_that_is_tried_again_in_halves_leaves_out_who_was_cancelled_meanwhile(bench: Any) -> None:
    gone, kept = Ticket(), Ticket()
    bench.occupy()
    futures = [bench.submit([61], ticket=gone), bench.submit([62], ticket=kept)]

    def fault(rows: list[tuple[int, ...]]) -> Exception | None:
        if len(rows) < 2:
            return None
        gone.cancel()
        return RuntimeError("boom")

    bench.forwards.fault = fault
    bench.forwards.release()
    assert isinstance(bench.outcome(futures[0]).error, Cancelled)
    assert bench.outcome(futures[1]).error is None
    assert bench.forwards.batches[1:] == [[(61,), (62,)], [(62,)]]


@pytest.mark.parametrize("swallow", [False, True])
async def test_between_two_forwards_the_second_is_not_run(watched: Any, swallow: bool) -> None:
    rig, latencies = watched
    device = rig.resident("llama").loaded.device
    analyzer = Forwards()
    stream = rig.start(analyzer, swallow=swallow)
    with device.turn:
        await first_result(stream)
        await until(latencies.queued)
        await stream.aclose()
    await rig.settled()
    assert analyzer.reached == (["first", "second"] if swallow else [])
    assert rig.resident("llama").batcher.waiting() == (0, 0)
    assert len(latencies.seconds) == 1


class Deaf(Analyzer):
    """Yields on after it was cancelled."""

    name = "deaf"

    def __init__(self) -> None:
        self.waiting, self.go, self.asked_for_more = threading.Event(), threading.Event(), False

    def analyze(self, params: Any, ctx: Any) -> Iterator[Any]:
        yield Record("r", {})
        self.waiting.set()
        self.go.wait(PATIENCE_S)
        yield Record("r", {}, item="2")
        self.asked_for_more = True


async def test_before_each_result_a_cancelled_analysis_ends(watched: Any) -> None:
    rig, latencies = watched
    analyzer = Deaf()
    stream = rig.start(analyzer)
    await first_result(stream)
    await until(analyzer.waiting)
    rig.executor.cancel("r")
    with pytest.raises(Cancelled):
        await anext(stream)
    analyzer.go.set()
    await rig.settled()
    assert not analyzer.asked_for_more
    assert len(latencies.seconds) == 1, "the device was free already"


class Computing(Analyzer):
    """Computes until its test lets it go."""

    name = "computing"

    def __init__(self) -> None:
        self.inside, self.go = threading.Event(), threading.Event()

    def work(self) -> None:
        self.inside.set()
        self.go.wait(PATIENCE_S)

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        yield Record("r", {})
        await ctx.compute(self.work)


class PlainComputing(Computing):
    """The same on a thread."""

    name = "plain-computing"

    def analyze(self, params: Any, ctx: Any) -> Iterator[Any]:
        yield Record("r", {})
        ctx.compute(self.work)


@pytest.mark.parametrize("kind", [Computing, PlainComputing])
async def test_a_computation_keeps_the_device_busy_until_it_ends(watched: Any, kind: type[Computing]) -> None:
    rig, latencies = watched
    analyzer = kind()
    stream = rig.start(analyzer)
    await first_result(stream)
    await until(analyzer.inside)
    await stream.aclose()
    assert latencies.seconds == []
    analyzer.go.set()
    await until(latencies.told)
    await rig.settled()
    assert len(latencies.seconds) == 1


def told(ticket: Ticket) -> list[float]:
    seconds: list[float] = []
    ticket.watch_device(seconds.append)
    return seconds


def test_a_running_forward_keeps_the_device_busy_until_it_ends(bench: Any) -> None:
    ticket = Ticket()
    latencies = told(ticket)
    bench.forwards.hold()
    futures = [bench.submit([1, 2], ticket=ticket)]
    bench.forwards.wait_until_inside()
    futures.append(bench.submit([3, 4], ticket=ticket))
    ticket.cancel()
    assert all(isinstance(bench.outcome(future).error, Cancelled) for future in futures)
    assert latencies == []
    bench.forwards.release()
    bench.batcher.close()
    assert len(latencies) == 1


@pytest.mark.parametrize("end", [Ticket.cancel, Ticket.expire])
def test_a_device_that_is_free_is_told_of_at_once_and_once(end: Callable[[Ticket], bool]) -> None:
    ticket = Ticket()
    latencies = told(ticket)
    with ticket.on_device():
        pass
    assert latencies == []
    end(ticket)
    with ticket.on_device():
        pass
    assert len(latencies) == 1


def test_of_an_analysis_that_was_over_nothing_is_told() -> None:
    ticket = Ticket()
    latencies = told(ticket)
    ticket.watch_device(None)
    ticket.cancel()
    assert latencies == []


def test_between_two_parts_of_a_long_row_the_next_is_not_read(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(max_tokens=16)
    long = list(range(3, 60)) + list(range(3, 10))
    bench.outcome(bench.submit(long))  # from here on it is known that rows can be read in parts
    before = len(bench.forwards.batches)
    bench.outcome(bench.submit(long))
    assert len(bench.forwards.batches) - before > 1
    ticket = Ticket()
    latencies = told(ticket)
    bench.forwards.hold()
    while bench.forwards.entered.acquire(blocking=False):
        pass
    future = bench.submit(long, ticket=ticket)
    bench.forwards.wait_until_inside()
    before = len(bench.forwards.batches)
    ticket.cancel()
    assert isinstance(bench.outcome(future).error, Cancelled)
    assert latencies == []
    bench.forwards.release()
    bench.batcher.settle()
    assert len(bench.forwards.batches) == before
    assert len(latencies) == 1
