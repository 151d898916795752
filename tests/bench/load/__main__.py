"""Sends analyses to a daemon and counts how each one ends: ``python -m tests.bench.load``.

With --clients, so many clients send one request after another (a closed loop); with --rate, requests
come at random moments, so many a second, whether or not earlier ones have ended (an open loop).
Requests are drawn from --seed: the same arguments ask for the same. Without --target a daemon is
started that serves the embedded SmolLM2. With --soak the same load runs for the stated time, and the
daemon must then hold nothing, have lost nothing and be the size it was.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.load.drive import Bounds
from tests.bench.load.mix import KINDS, USUAL, Lengths, parse_mix
from tests.bench.load.plan import Profile
from tests.bench.load.show import describe, print_tally
from tests.bench.load.soak import Loop, Soaked, soak
from tests.bench.load.subject import SMOLLM2, TINY, Subject, served
from tests.bench.load.watch import Watched
from tests.bench.load.wire import Wire
from tests.bench.machine import busy_with_others, describe_machine
from tests.bench.report import Report, print_report, save_report

#: Sent before anything is counted, as a share of the bounds.
_WARM_UP = 0.2


def main() -> int:
    """Runs the load; 1 when something that must hold does not."""
    options = _parser().parse_args()
    machine, busy, started = describe_machine(), busy_with_others(), time.monotonic()
    print(f"{machine}\n{busy:.1f} processes wanted a core in the minute before")
    with _daemon(options) as (daemon, subject):
        profile, loop = _profile(options, subject), Loop(options.clients, options.rate)
        found = asyncio.run(_run(options, daemon, profile, loop))
    print_tally(found.tally)
    report = Report(
        name="soak" if options.soak else "load",
        setting=describe(profile, loop),
        checks=found.checks,
        data=found.tally.as_json(),
        seconds=time.monotonic() - started,
    )
    print_report(report)
    print(f"written to {save_report(report, machine, busy)}")
    return 1 if report.failed else 0


async def _run(options: argparse.Namespace, daemon: Watched, profile: Profile, loop: Loop) -> Soaked:
    seconds = options.soak or options.seconds
    bounds = Bounds(sys.maxsize if options.soak else options.count, seconds)
    warm_up = Bounds(max(1, int(_WARM_UP * bounds.count)), max(1.0, _WARM_UP * seconds))

    def make_wire() -> Wire:
        return Wire(daemon.target, options.connections, token=options.token, ca=options.ca)

    return await soak(daemon, profile, bounds, loop=loop, warm_up=warm_up, make_wire=make_wire)


@contextmanager
def _daemon(options: argparse.Namespace) -> Iterator[tuple[Watched, Subject]]:
    subject = TINY if options.tiny else SMOLLM2
    if options.target:
        if options.model:
            subject = Subject(options.model, subject.words_a_token, subject.longest)
        yield Watched(options.target, options.admin_target or "", options.metrics or "", options.pid), subject
        return
    with tempfile.TemporaryDirectory() as folder, served(subject, Path(folder)) as daemon:
        yield Watched.of(daemon), subject


def _profile(options: argparse.Namespace, subject: Subject) -> Profile:
    return Profile(
        subject=subject,
        mix=options.mix,
        lengths=options.lengths,
        cancels=options.cancels,
        cancel_after_s=(0.0, options.cancel_within),
        deadlines=options.deadlines,
        deadline_s=(0.01, options.deadline_within),
        batch=options.batch,
        many=options.many,
        seed=options.seed,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.load",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument_group("where").add_argument
    add("--target", help="a running daemon, HOST:PORT; without it one is started")
    add("--admin-target", help="its admin listener, to ask what runs")
    add("--metrics", help="its metrics listener, HOST:PORT, to compare counts")
    add("--pid", type=int, help="its process, to compare memory, threads and files")
    add("--model", help="name of the model there")
    add("--token", help="bearer token")
    add("--ca", type=Path, help="PEM file of the authority that signed its certificate")
    add("--tiny", action="store_true", help="serve a tiny random model instead of SmolLM2")
    add = parser.add_argument_group("how").add_argument
    add("--clients", type=int, default=16, help="closed loop: clients")
    add("--rate", type=float, help="open loop: requests a second")
    add("--count", type=int, default=500, help="requests at most")
    add("--seconds", type=float, default=60.0, help="seconds of sending at most")
    add("--soak", type=float, metavar="SECONDS", help="send for so long, however many that are")
    add("--connections", type=int, default=4, help="connections that requests take turns on")
    add = parser.add_argument_group("what").add_argument
    kinds = ", ".join(KINDS)
    add("--mix", type=parse_mix, default=USUAL, help=f"KIND=WEIGHT,...; kinds: {kinds}")
    add("--lengths", type=Lengths.parse, default=Lengths(8, 128), help="tokens of a prompt, LOW-HIGH")
    add("--cancels", type=float, default=0.0, help="share that is given up")
    add("--cancel-within", type=float, default=1.0, help="seconds within which they are")
    add("--deadlines", type=float, default=0.0, help="share with a deadline")
    add("--deadline-within", type=float, default=5.0, help="longest deadline in seconds")
    add("--batch", type=float, default=0.0, help="share of batch priority")
    add("--many", type=float, default=0.0, help="share that travels on AnalyzeMany")
    add("--seed", type=int, default=0, help="of everything that is drawn")
    return parser


if __name__ == "__main__":
    sys.exit(main())
