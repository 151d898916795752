"""A thousand analyses given up at random points of their lives, under load: nothing of them may stay.

How long the device still works for one that nobody wants is the server's own measurement.
"""

import asyncio
import tempfile
from pathlib import Path

from tests.bench.load.drive import Bounds, closed_loop
from tests.bench.load.mix import Lengths
from tests.bench.load.plan import Profile, shots
from tests.bench.load.soak import Loop, Soaked, soak
from tests.bench.load.subject import SMOLLM2, Subject, served
from tests.bench.load.watch import Watched
from tests.bench.load.wire import Wire
from tests.bench.report import Check, Ratio, Report, scaled
from tests.e2e.daemon import Daemon

CANCELS, CLIENTS = 1000, 24
#: Of all requests; the others are the load, and must be unharmed.
_SHARE = 0.7
_MIX = {"dla:head": 3.0, "dla:lens": 1.0, "shop-r1": 1.0, "statistics": 1.0}


def measure(share: float, subject: Subject = SMOLLM2) -> Report:
    """Load with cancels from at once to half as long again as an analysis takes."""
    wanted = scaled(CANCELS, share, 40)
    profile = Profile(subject=subject, mix=_MIX, lengths=Lengths(8, 64), many=0.3, batch=0.3, seed=41)
    with tempfile.TemporaryDirectory() as folder, served(subject, Path(folder)) as daemon:
        found = asyncio.run(_run(daemon, profile, wanted))
    cancelled = found.tally.count("CANCELLED")
    took = found.added.histogram("lensd_cancel_latency_seconds")
    forward = found.added.histogram("lensd_batch_duration_seconds")
    return Report(
        name="cancels",
        setting=f"{subject.model}, {CLIENTS} clients, {_SHARE:.0%} of requests given up at a random moment, "
        f"{profile.many:.0%} on AnalyzeMany",
        ratios=[
            Ratio(
                "median from a cancel to a device free of it",
                "median forward of the same run",
                [took.at(0.5) / forward.at(0.5)],
                at_most=1.0,
            )
        ],
        checks=[
            Check(f"at least {wanted} were cancelled", f"{cancelled}", cancelled >= wanted),
            Check("the others completed", f"{found.tally.completed}", _others_completed(found)),
            *found.checks,
        ],
        figures=[
            ("cancelled, of them with rows to withdraw", f"{cancelled}, {took.count:.0f}"),
            ("from a cancel: median, p99", f"{took.at(0.5) * 1e3:.1f}, {took.at(0.99) * 1e3:.1f} ms"),
            ("a forward: median, p99", f"{forward.at(0.5) * 1e3:.1f}, {forward.at(0.99) * 1e3:.1f} ms"),
        ],
        data=found.tally.as_json(),
        notes=["medians of the server's own histograms, linear within a bucket"],
    )


async def _run(daemon: Daemon, profile: Profile, wanted: int) -> Soaked:
    wire = Wire(daemon.grpc)
    first = await closed_loop(wire, shots(profile.but(seed=42), "first"), CLIENTS, Bounds(4 * CLIENTS))
    await wire.close()
    # Some are done before their moment comes, so ask more often than `wanted` over the share.
    return await soak(
        Watched.of(daemon),
        profile.but(cancels=_SHARE, cancel_after_s=(0.0, 1.2 * first.latency.at(0.5))),
        Bounds(int(2.5 * wanted / _SHARE), 600.0, enough=lambda tally: tally.count("CANCELLED") >= wanted),
        loop=Loop(CLIENTS),
        warm_up=Bounds(10 * CLIENTS),
    )


def _others_completed(found: Soaked) -> bool:
    return found.tally.completed + found.tally.count("CANCELLED") == found.tally.ended
