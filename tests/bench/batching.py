"""Many callers at once over gRPC, beside what nobody can beat: forwards back to back in batches made by hand.

The baseline has the same prompts in batches of as many as there are clients, more than which the daemon
never finds waiting, tokenised before the clock starts, without gRPC and without attribution.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from tests.bench.contenders import UNIT, BareForward, converted_weights
from tests.bench.load.drive import Bounds, closed_loop
from tests.bench.load.mix import Ask
from tests.bench.load.plan import Shot
from tests.bench.load.scrape import Scrape
from tests.bench.load.subject import SMOLLM2
from tests.bench.load.tally import Tally
from tests.bench.load.wire import Wire
from tests.bench.prompts import distinct_prompts
from tests.bench.report import Check, Ratio, Report, pairwise, scaled
from tests.e2e.daemon import running_daemon

WORDS, CLIENTS = 14, 32
#: Fewer than 128 requests a round lose up to a tenth to the first and the last batch.
A_ROUND, ROUNDS = 256, 6
LEAST = 0.9


def measure(share: float) -> Report:
    """Rounds in which both run the same prompts, in turns."""
    rounds, a_round = scaled(ROUNDS, share), scaled(A_ROUND, share, CLIENTS)
    bare = BareForward(converted_weights())
    prompts = distinct_prompts(WORDS, seed=7)
    tokens = bare.tokens(next(distinct_prompts(WORDS, seed=8)))
    with (
        tempfile.TemporaryDirectory() as state,
        running_daemon(Path(state)) as daemon,
        asyncio.Runner() as loop,
    ):
        wire = loop.run(_connect(daemon.grpc))
        warm_up = list(islice(prompts, CLIENTS))
        _ideal(bare, warm_up)
        loop.run(_lensd(wire, warm_up, "warm-up"))
        before, ideal, lensd, ended = Scrape.of(daemon.metrics), list[float](), list[float](), Tally()
        for number in range(rounds):
            batch = list(islice(prompts, a_round))
            if number % 2:
                ideal.append(_ideal(bare, batch))
            ended = loop.run(_lensd(wire, batch, str(number)))
            lensd.append(ended.rate)
            if not number % 2:
                ideal.append(_ideal(bare, batch))
        batches = Scrape.of(daemon.metrics).since(before).histogram("lensd_batch_rows")
        loop.run(wire.close())
    return Report(
        name="batching",
        setting=f"SmolLM2-135M, {tokens} tokens, DLA by {UNIT}; {CLIENTS} clients, {a_round} requests a round",
        ratios=[
            Ratio(
                f"analyses a second, {CLIENTS} clients",
                f"bare forwards in hand-made batches of {CLIENTS}",
                pairwise(lensd, ideal),
                at_least=LEAST,
            )
        ],
        checks=[Check("all of the last round completed", f"{ended.completed}", ended.completed == a_round)],
        figures=[
            ("a second", f"hand-made {statistics.median(ideal):.1f}, lensd {statistics.median(lensd):.1f}"),
            ("rows a batch, mean", f"{batches.mean:.1f}"),
        ],
    )


def shots_of(prompts: Sequence[str], name: str, **params: object) -> Iterator[Shot]:
    """One analysis by head of each prompt."""
    for number, prompt in enumerate(prompts):
        asked = Ask("dla:head", "dla", SMOLLM2.model, {"prompt": prompt, "unit": UNIT, **params})
        yield Shot(f"{name}-{number}", asked)


async def _connect(target: str) -> Wire:
    return Wire(target)


async def _lensd(wire: Wire, prompts: Sequence[str], name: str) -> Tally:
    return await closed_loop(wire, shots_of(prompts, name), CLIENTS, Bounds(len(prompts)))


def _ideal(bare: BareForward, prompts: Sequence[str]) -> float:
    bare.prepare(prompts)
    start = time.perf_counter()
    for first in range(0, len(prompts), CLIENTS):
        bare.run_batch(prompts[first : first + CLIENTS])
    return len(prompts) / (time.perf_counter() - start)
