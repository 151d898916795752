"""Load for a stated time, then everything must be as it was: ``python -m tests.bench.load --soak``.

The daemon is warmed up by the same load first, so that what it holds for good is held when it is
first looked at; more of it afterwards is a leak.
"""

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass

from tests.bench.load.checks import Ledger, server_checks, stream_checks
from tests.bench.load.drive import Bounds, closed_loop, open_loop
from tests.bench.load.plan import Profile, Shot, shots
from tests.bench.load.scrape import Scrape
from tests.bench.load.tally import End, Tally
from tests.bench.load.watch import (
    Watched,
    compare,
    memory_check,
    reference,
    same_answer,
    settled,
)
from tests.bench.load.wire import Wire
from tests.bench.report import Check


@dataclass(frozen=True, slots=True)
class Loop:
    """``clients`` that wait for their answers, or, where a ``rate`` is given, requests a second."""

    clients: int = 16
    rate: float | None = None

    async def run(
        self, wire: Wire, requests: Iterator[Shot], bounds: Bounds, each: Callable[[End], None] | None
    ) -> Tally:
        """Sends ``requests`` within ``bounds``."""
        if self.rate is None:
            return await closed_loop(wire, requests, self.clients, bounds, each=each)
        return await open_loop(wire, requests, self.rate, bounds, each=each)


@dataclass(frozen=True, slots=True)
class Soaked:
    """What a soak saw. ``added`` is what the run added to the daemon's metrics."""

    tally: Tally
    checks: list[Check]
    added: Scrape


async def soak(
    daemon: Watched,
    profile: Profile,
    bounds: Bounds,
    *,
    loop: Loop = Loop(),
    warm_up: Bounds,
    make_wire: Callable[[], Wire] | None = None,
    around: Callable[[Awaitable[Tally]], Awaitable[Tally]] | None = None,
) -> Soaked:
    """Warms up, looks, loads, waits until it is quiet, looks again.

    ``around`` may run something else beside the load.
    """
    model, ledger = profile.subject.model, Ledger()
    make_wire = make_wire or (lambda: Wire(daemon.target))
    await _once(make_wire, loop, shots(profile.but(seed=profile.seed + 1), "warm-up"), warm_up, None)
    answer = await reference(daemon, model)
    before = await settled(daemon, [model])
    counted = daemon.scrape()
    load = _once(make_wire, loop, shots(profile), bounds, ledger.note)
    tally = await (load if around is None else around(load))
    after = await settled(daemon, [model], before)
    added = daemon.scrape().since(counted)
    checks = [
        *stream_checks(tally, ledger),
        *server_checks(tally, added),
        *compare(before, after),
        memory_check(before.resident, after.resident),
        same_answer(answer, await reference(daemon, model)),
    ]
    return Soaked(tally, checks, added)


async def _once(
    make_wire: Callable[[], Wire],
    loop: Loop,
    requests: Iterator[Shot],
    bounds: Bounds,
    each: Callable[[End], None] | None,
) -> Tally:
    wire = make_wire()
    try:
        return await loop.run(wire, requests, bounds, each)
    finally:
        await wire.close()
