"""Sixteen prompts that begin alike, beside sixteen as long that do not: what computing a prefix once is worth.

Each request has a prefix of its own, so nothing can be kept from one to the next, only shared within.
The rows of a shared prefix must still be what they are alone.
"""

import statistics
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from lensd_client import Client
from lensd_server.settings import EMBEDDED_NAME
from tests.bench.contenders import UNIT
from tests.bench.load.scrape import Scrape
from tests.bench.prompts import distinct_prompts
from tests.bench.report import Check, Ratio, Report, pairwise, scaled
from tests.bench.timing import take_turns
from tests.e2e.daemon import running_daemon

ROWS, PREFIX, OWN = 16, 100, 12
PAIRS = 12
MOST = 0.4
#: Of the largest value: what another batch may change.
TOLERANCE = 1e-5


def measure(share: float) -> Report:
    """Pairs of one request of each kind, in turns."""
    pairs = scaled(PAIRS, share, 2)
    with tempfile.TemporaryDirectory() as state, running_daemon(Path(state)) as daemon:
        with Client(daemon.grpc) as lens:
            asked = zip(_alike(), _unlike(), strict=True)
            contenders = {
                "alike": lambda both: _run(lens, both[0]),
                "unlike": lambda both: _run(lens, both[1]),
            }
            take_turns(contenders, asked, 1)
            before = Scrape.of(daemon.metrics)
            found = take_turns(contenders, asked, pairs)
            added = Scrape.of(daemon.metrics).since(before)
            apart = _apart(lens, next(_alike()))
    return Report(
        name="prefix",
        setting=f"SmolLM2-135M, one request of {ROWS} prompts of {PREFIX} + {OWN} tokens, DLA by {UNIT}",
        ratios=[
            Ratio(
                f"time of {ROWS} rows that share {PREFIX} tokens",
                f"{ROWS} rows as long that share none",
                pairwise(found["alike"], found["unlike"]),
                at_most=MOST,
            )
        ],
        checks=[
            Check(
                f"rows are what they are alone, to {TOLERANCE:.0e} of the largest value",
                f"apart by {apart:.1e} of it",
                apart <= TOLERANCE,
            )
        ],
        figures=[
            *((f"request, rows {name}", f"{statistics.median(s) * 1e3:.0f} ms") for name, s in found.items()),
            ("tokens of beginnings, computed and reused", _beginnings(added)),
        ],
    )


def _beginnings(added: Scrape) -> str:
    kinds = ("computed", "reused")
    return ", ".join(f"{added.total('lensd_prefix_tokens_total', kind=kind):.0f}" for kind in kinds)


def _alike() -> Iterator[list[str]]:
    prefixes, own = distinct_prompts(PREFIX, seed=11), distinct_prompts(OWN, seed=12)
    for prefix in prefixes:
        yield [f"{prefix} {rest}" for rest in islice(own, ROWS)]


def _unlike() -> Iterator[list[str]]:
    prompts = distinct_prompts(PREFIX + OWN, seed=13)
    while True:
        yield list(islice(prompts, ROWS))


def _run(lens: Client, prompts: Sequence[str]) -> None:
    run = lens.analyze("dla", EMBEDDED_NAME, prompts=list(prompts), unit=UNIT).finish()
    assert run.completed is not None
    assert not [item for item in run.items() if item.error is not None]


def _apart(lens: Client, prompts: Sequence[str]) -> float:
    """Largest difference of a row among the others from the same row alone, over its largest value."""
    together = lens.analyze("dla", EMBEDDED_NAME, prompts=list(prompts), unit=UNIT, target=10)
    apart = 0.0
    for number, prompt in enumerate(prompts):
        alone = lens.analyze("dla", EMBEDDED_NAME, prompt=prompt, unit=UNIT, target=10)
        expected = np.asarray(alone["contributions"]["value"])
        found = np.asarray(together["contributions", str(number)]["value"])
        apart = max(apart, float(np.abs(found - expected).max() / np.abs(expected).max()))
    return apart
