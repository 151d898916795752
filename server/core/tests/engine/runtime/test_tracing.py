"""The span of a request reaches the device thread, and nothing is known of one where nobody traces."""

import asyncio
import queue
from collections.abc import AsyncIterator
from typing import Any

from lensd_api import Analyzer, BaseParams, Capture, Record, Row, Site
from lensd_server.engine.observers import BatchRecord, Observers
from lensd_server.engine.tracing import CURRENT_SPAN


class Look(Analyzer):
    """One forward."""

    name = "look"

    class Params(BaseParams):
        prompt: str

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        await ctx.model.forward(
            [Row(ctx.model.encode(params.prompt))], Capture(frozenset({Site.FINAL_RESIDUAL}))
        )
        yield Record("looked", {})


class Batches:
    """Remembers the spans of every batch."""

    def __init__(self) -> None:
        self.traced: queue.Queue[tuple[tuple[Any, float], ...]] = queue.Queue()

    def batch_ran(self, batch: BatchRecord) -> None:
        self.traced.put(batch.traced)

    def queue_changed(self, model: str, rows: int, tokens: int) -> None:
        """Not looked at."""

    def cancel_took(self, model: str, seconds: float) -> None:
        """Not looked at."""


async def test_a_batch_knows_the_spans_of_its_rows_and_their_waits(make_rig: Any) -> None:
    batches = Batches()
    rig = make_rig(observers=Observers(batches=(batches,)))
    await rig.results(Look(), prompt="hello")
    # Told after the row was answered, on the device thread.
    assert await asyncio.to_thread(batches.traced.get, timeout=60) == ()
    span = object()
    CURRENT_SPAN.set(span)
    await rig.results(Look(), prompt="hello")
    ((seen, waited_s),) = await asyncio.to_thread(batches.traced.get, timeout=60)
    assert seen is span
    assert waited_s >= 0.0
