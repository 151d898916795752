"""Hundreds of cancels at random points under load, and then nothing is left. Seeded; no clock decides."""

import asyncio
import random
import threading
from contextlib import aclosing, suppress
from typing import Any

from lensd_api import Analyzer, BaseParams, Cancelled, Capture, LensdError, Record, Row, Site, Table
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.events import Completed, Found, Priority
from lensd_server.engine.observers import BatchRecord, Observers
from lensd_server.tiny_engine import hook_count, weights_digest

SITES = frozenset({Site.FINAL_RESIDUAL, Site.HEADS})
ANALYSES, AT_ONCE = 300, 24


class Mixed(Analyzer):
    """Forwards of several lengths, some at once, computations, log-probabilities and results."""

    name = "mixed"

    class Params(BaseParams):
        seed: int

    async def analyze(self, params: Any, ctx: Any) -> Any:
        draws = random.Random(params.seed)
        for step in range(3):
            rows = [Row(tuple(draws.randrange(3, 60) for _ in range(draws.randint(2, 30)))) for _ in range(3)]
            async with asyncio.TaskGroup() as group:
                for row in rows:
                    group.create_task(ctx.model.forward([row], Capture(SITES, positions="all")))
            await ctx.compute(sum, [1, 2])
            found = await ctx.model.logprobs(rows)
            ctx.progress(step, 3)
            yield Table("t", {"n": [len(row) for row in found]}, item=str(step))


class PlainMixed(Mixed):
    """The same on a thread."""

    name = "plain-mixed"

    def analyze(self, params: Any, ctx: Any) -> Any:
        draws = random.Random(params.seed)
        for step in range(3):
            rows = [Row(tuple(draws.randrange(3, 60) for _ in range(draws.randint(2, 30)))) for _ in range(3)]
            ctx.model.forward(rows, Capture(SITES, positions="all"))
            ctx.compute(sum, [1, 2])
            yield Record("r", {"step": step}, item=str(step))


class Cancels:
    """Counts whose device became free."""

    def __init__(self) -> None:
        self.freed = 0
        self.lock = threading.Lock()

    def batch_ran(self, batch: BatchRecord) -> None: ...

    def queue_changed(self, model: str, rows: int, tokens: int) -> None: ...

    def cancel_took(self, model: str, seconds: float) -> None:
        with self.lock:
            self.freed += 1


async def one(rig: Any, number: int, draws: random.Random, turns: asyncio.Semaphore) -> str:
    """Runs one analysis and cancels it somewhere, in one of the ways there are; answers how it ended."""
    kind = draws.choice((Mixed, PlainMixed))
    how = draws.choice(("reader", "reader", "operator", "turns", "never"))
    after, request_id = draws.randint(0, 6), f"r{number}"
    request = {
        "request_id": request_id,
        "peer": f"ipv4:10.0.0.{number % 3}:1",
        "priority": draws.choice(list(Priority)),
    }
    async with turns, aclosing(rig.start(kind(), seed=number, request=request)) as stream:
        if how == "turns":
            # Gone after a while, whatever has happened by then.
            reading = asyncio.ensure_future(anext(stream))
            for _ in range(50 * after):
                await asyncio.sleep(0)
            reading.cancel()
            with suppress(asyncio.CancelledError, LensdError):
                await reading
            return "gone"
        seen = found = 0
        try:
            async for event in stream:
                found += isinstance(event, Found)
                if isinstance(event, Completed):
                    assert found == 3
                    return "completed"
                if how == "reader" and seen == after:
                    return "gone"
                if how == "operator" and seen == after:
                    rig.executor.cancel(request_id)
                seen += 1
        except Cancelled:
            return "cancelled"
    raise AssertionError("a stream ended without Completed and without an error")


async def test_random_cancels_under_load_leave_nothing(make_rig: Any, monkeypatch: Any) -> None:
    cancels, tickets = Cancels(), list[Ticket]()
    rig = make_rig(observers=Observers(batches=[cancels]), caller_share=1.0)
    await rig.events(Mixed(), seed=0)
    resident = rig.resident("llama")
    module = resident.loaded.model.module
    before = hook_count(module), weights_digest(module)
    begin = rig.executor._begin

    def noting(request: Any) -> Any:
        analysis = begin(request)
        tickets.append(analysis.ticket)
        return analysis

    monkeypatch.setattr(rig.executor, "_begin", noting)
    draws, turns = random.Random(7), asyncio.Semaphore(AT_ONCE)
    ends = await asyncio.gather(*(one(rig, number, draws, turns) for number in range(ANALYSES)))
    assert {"completed", "gone", "cancelled"} == set(ends)
    assert sum(end != "completed" for end in ends) > ANALYSES // 2

    await rig.settled()
    await asyncio.to_thread(resident.batcher.settle)
    assert rig.executor.running() == []
    assert rig.residency.leases("llama") == 0
    assert resident.batcher.waiting() == (0, 0)
    assert (hook_count(module), weights_digest(module)) == before
    # The device thread tells the tickets of its last batch just after it is free.
    await asyncio.to_thread(resident.batcher.close)
    assert [ticket._callbacks for ticket in tickets if ticket._callbacks] == []
    assert [ticket._on_device for ticket in tickets if ticket._on_device] == []
    assert cancels.freed <= sum(ticket.cancelled for ticket in tickets)
    assert [t.name for t in threading.enumerate() if t.name.startswith("lensd-analysis-")] == []
    rig.executor.close()
    assert len(rig.executor._loop._tasks) == 0
