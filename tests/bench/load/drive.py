"""When requests are sent: by clients that wait for their answers, or at a rate that waits for nobody.

Both are bounded by a count and by a time; what has been sent is always waited for.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from tests.bench.load.plan import Shot
from tests.bench.load.tally import End, Tally
from tests.bench.load.wire import Wire

#: Requests an open loop may have out at once; more would measure this process, not the daemon.
MOST_OUT = 8192


@dataclass(frozen=True, slots=True)
class Bounds:
    """At most so many requests, sent within so many seconds, until what has ended is ``enough``."""

    count: int
    seconds: float = 3600.0
    enough: Callable[[Tally], bool] = lambda _: False

    def reached(self, tally: Tally, seconds: float) -> bool:
        """Whether nothing more is to be sent ``seconds`` after the start."""
        return seconds >= self.seconds or self.enough(tally)


async def closed_loop(
    wire: Wire,
    shots: Iterator[Shot],
    clients: int,
    bounds: Bounds,
    *,
    each: Callable[[End], None] | None = None,
) -> Tally:
    """``clients`` clients, each sending its next request when the last one has ended."""
    tally, started = Tally(), time.perf_counter()
    left = islice(shots, bounds.count)

    async def client() -> None:
        for shot in left:
            tally.offered += 1
            _note(tally, await wire.run(shot), each)
            if bounds.reached(tally, time.perf_counter() - started):
                return

    await asyncio.gather(*(client() for _ in range(clients)))
    tally.seconds = time.perf_counter() - started
    return tally


async def open_loop(
    wire: Wire,
    shots: Iterator[Shot],
    rate: float,
    bounds: Bounds,
    *,
    seed: int = 0,
    each: Callable[[End], None] | None = None,
) -> Tally:
    """Requests at random moments, ``rate`` a second on average (a Poisson process)."""
    tally, draw, out = Tally(), random.Random(seed), set[asyncio.Task[None]]()
    started = due = time.perf_counter()

    async def send(shot: Shot, due: float) -> None:
        _note(tally, await wire.run(shot, due), each)

    for shot in islice(shots, bounds.count):
        due += draw.expovariate(rate)
        if bounds.reached(tally, due - started):
            break
        if (early := due - time.perf_counter()) > 0:
            await asyncio.sleep(early)
        else:
            tally.lateness_s = max(tally.lateness_s, -early)
            await asyncio.sleep(0)  # one that is late must still let answers in
        if len(out) >= MOST_OUT:
            tally.withheld += 1
            continue
        tally.offered += 1
        task = asyncio.create_task(send(shot, due))
        out.add(task)
        task.add_done_callback(out.discard)
    if out:
        await asyncio.gather(*out)
    tally.seconds = time.perf_counter() - started
    return tally


def _note(tally: Tally, end: End, each: Callable[[End], None] | None) -> None:
    tally.add(end)
    if each is not None:
        each(end)
