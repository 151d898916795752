"""Three times as many requests as the daemon can take: what it accepts it serves, what it refuses it says when to retry.

Capacity is what clients that wait for their answers get, as many as the daemon lets in at once; then
requests come at three times that rate and wait for nobody.
"""

import asyncio
import tempfile
from pathlib import Path

from tests.bench.load.drive import Bounds, closed_loop
from tests.bench.load.mix import Lengths
from tests.bench.load.plan import Profile, shots
from tests.bench.load.soak import Loop, Soaked, soak
from tests.bench.load.subject import SMOLLM2, Subject, served
from tests.bench.load.tally import Tally
from tests.bench.load.watch import Watched
from tests.bench.load.wire import Wire
from tests.bench.report import Check, Ratio, Report, scaled
from tests.e2e.daemon import Daemon

REQUESTS, TIMES = 10_000, 3.0
#: Analyses at once, a limit that keeps what is accepted from waiting for long.
AT_ONCE = 64
AT_CAPACITY = 1024
MOST_WAIT = 2.0


def measure(share: float, subject: Subject = SMOLLM2) -> Report:
    """Capacity, then overload, then everything must be as it was."""
    requests = scaled(REQUESTS, share, 4 * AT_ONCE)
    profile = Profile(subject=subject, mix={"dla:component": 1.0}, lengths=Lengths(8, 16), seed=31)
    # All of it for this host, which would otherwise leave a part to others.
    limit = {"LENSD_LIMITS__MAX_ANALYSES": str(AT_ONCE), "LENSD_LIMITS__CALLER_SHARE": "1.0"}
    with tempfile.TemporaryDirectory() as folder, served(subject, Path(folder), **limit) as daemon:
        capacity, found = asyncio.run(
            _run(daemon, profile, requests, scaled(AT_CAPACITY, share, 4 * AT_ONCE))
        )
    tally, p50 = found.tally, capacity.latency.at(0.5)
    return Report(
        name="overload",
        setting=f"{subject.model}, DLA by component, {profile.lengths.low} to {profile.lengths.high} tokens; "
        f"{requests} requests offered at {TIMES:g} x capacity; at most {AT_ONCE} analyses at once",
        ratios=[
            Ratio("offered a second", "capacity", [tally.offered / tally.seconds / capacity.rate]),
            Ratio("completed a second", "capacity", [tally.rate / capacity.rate]),
            Ratio("p50 of accepted", "p50 at capacity", [tally.latency.at(0.5) / p50], at_most=MOST_WAIT),
            Ratio("p99 of accepted", "p50 at capacity", [tally.latency.at(0.99) / p50]),
        ],
        checks=[
            Check("some were refused", f"{tally.refused} of {tally.ended}", tally.refused > 0),
            Check("all were sent", f"{tally.withheld} were not", not tally.withheld),
            *found.checks,
        ],
        figures=[
            ("completed, refused, other", f"{tally.completed}, {tally.refused}, {tally.ended - tally.completed - tally.refused}"),
            ("capacity", f"{capacity.rate:.1f} a second, p50 {p50 * 1e3:.0f} ms"),
            ("sender late by at most", f"{tally.lateness_s * 1e3:.0f} ms"),
        ],
        data=tally.as_json(),
    )  # fmt: skip


async def _run(daemon: Daemon, profile: Profile, requests: int, first: int) -> tuple[Tally, Soaked]:
    wire = Wire(daemon.grpc)
    await closed_loop(wire, shots(profile.but(seed=32), "first"), AT_ONCE, Bounds(first))
    capacity = await closed_loop(wire, shots(profile.but(seed=33), "capacity"), AT_ONCE, Bounds(first))
    await wire.close()
    # Warmed up by the same flood: buffers for refusals are part of what a daemon holds for good.
    found = await soak(
        Watched.of(daemon),
        profile,
        Bounds(requests),
        loop=Loop(rate=TIMES * capacity.rate),
        warm_up=Bounds(max(2 * AT_ONCE, requests // 10)),
    )
    return capacity, found
