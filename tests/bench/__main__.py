"""``make bench``: what lensd costs, holds and promises, each as a ratio to a stated baseline.

``python -m tests.bench`` runs the usual ones; names run those alone, ``all`` every one of them.
Everything that is compared takes turns, so that what else the machine does meets all of it alike; read
the ratios rather than the seconds. Results also go to ``.bench/``.
"""

import argparse
import sys
import time
from dataclasses import replace
from importlib import import_module
from inspect import signature

from tests.bench.load.subject import TINY
from tests.bench.machine import busy_with_others, describe_machine
from tests.bench.report import print_report, save_report

#: name -> the module that has ``measure(share)``, and whether it is one of the usual ones.
BENCHMARKS = {
    "latency": ("tests.bench.latency", True),
    "throughput": ("tests.bench.throughput", True),
    "memory": ("tests.bench.peak_memory", True),
    "batching": ("tests.bench.batching", True),
    "prefix": ("tests.bench.prefix", True),
    "fairness": ("tests.bench.fairness", True),
    "cancels": ("tests.bench.cancels", True),
    "overload": ("tests.bench.overload", True),
    "residency": ("tests.bench.residency", True),
    "protection": ("tests.bench.protection", True),
    "fit": ("tests.bench.fit", False),
    "rewards": ("tests.bench.rewards", False),
    "transformerlens": ("tests.bench.transformerlens", False),
}
USUAL = [name for name, (_, usual) in BENCHMARKS.items() if usual]


def main() -> int:
    """Runs benchmarks one after another; 1 when something that must hold does not."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "names", nargs="*", help=f"{', '.join(BENCHMARKS)}, or all; usually {', '.join(USUAL)}"
    )
    parser.add_argument("--share", type=float, default=1.0, help="share of the full size, to try one out")
    parser.add_argument(
        "--tiny",
        action="store_true",
        help="a tiny random model instead of SmolLM2: overload and cancels only",
    )
    options = parser.parse_args()
    names = list(BENCHMARKS) if options.names == ["all"] else options.names or USUAL
    if unknown := sorted(set(names) - set(BENCHMARKS)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    machine, busy = describe_machine(), busy_with_others()
    print(f"{machine}\n{busy:.1f} processes wanted a core in the minute before", flush=True)
    failed: list[str] = []
    for name in names:
        started = time.monotonic()
        measure = import_module(BENCHMARKS[name][0]).measure
        if options.tiny and "subject" not in signature(measure).parameters:
            parser.error(f"{name} compares with SmolLM2 elsewhere; leave --tiny out")
        report = measure(options.share, subject=TINY) if options.tiny else measure(options.share)
        report = replace(report, seconds=time.monotonic() - started, share=options.share)
        print_report(report)
        save_report(report, machine, busy)
        failed += [f"{name}: {what}" for what in report.failed]
    for what in failed:
        print(f"does not hold: {what}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
