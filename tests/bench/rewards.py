"""Shop-R1 rewards over gRPC beside other ways to their numbers, as a trainer asks for them.

Rollouts of some 200 rationale tokens, eight a prompt. The baselines are one forward a sample, and the
log-probabilities of batches as TRL computes them; they take turns with the daemon and do a part of what
it does, as their rate needs fewer to be known. Peak memory is that of a step of so many rollouts.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from lensd_client.trl import ShopR1Reward
from lensd_server.settings import EMBEDDED_NAME
from tests.bench.contenders import converted_weights
from tests.bench.memory import forget_peak, peak_bytes
from tests.bench.report import Check, Ratio, Report, pairwise, scaled
from tests.bench.reward_contenders import BATCH, Transformers
from tests.bench.rollouts import A_PROMPT, Rollout, rollouts
from tests.bench.timing import turn_order
from tests.e2e.daemon import Daemon, running_daemon

ROLLOUTS, ROUNDS = 256, 4
#: Rewards a second over those of the loop, and over the batched log-probabilities.
OVER_LOOP, OVER_BATCHES = 3.0, 1.0
#: Rollouts in a step whose peak is taken first, over which that of :data:`ROLLOUTS` may not grow.
SMALL_STEP, GROWTH = 32, 1.02
#: Relative; fp32 in batches of other shapes, over a rationale of two hundred tokens.
TOLERANCE = 1e-4
_MIB = 1024 * 1024
_NAMES = {"loop": "one forward a sample", "batches": f"log-probabilities as in TRL, batches of {BATCH}"}


def measure(share: float) -> Report:
    """Rounds of all ways in turns, then the peaks of a small and a large step."""
    rounds, a_round = scaled(ROUNDS, share), scaled(ROLLOUTS // ROUNDS, share, A_PROMPT)
    shares = {"loop": max(4, a_round // 8), "batches": max(BATCH, a_round // 4), "lensd": a_round}
    alone = Transformers(converted_weights())
    with tempfile.TemporaryDirectory() as state, running_daemon(Path(state)) as daemon:
        reward = ShopR1Reward(daemon.grpc, model=EMBEDDED_NAME)
        ways: dict[str, Callable[[Sequence[Rollout]], Any]] = {
            "loop": alone.one_by_one,
            "batches": alone.in_batches,
            "lensd": lambda batch: _score(reward, batch),
        }
        source = rollouts(seed=1)
        warm_up = list(islice(source, A_PROMPT))
        for run in ways.values():
            run(warm_up[:2])
        rates: dict[str, list[float]] = {name: [] for name in shares}
        difference = 0.0
        for number in range(rounds):
            batch = list(islice(source, a_round))
            found: dict[str, Any] = {}
            for name in turn_order(list(ways), number):
                own = batch[: shares[name]]
                begin = time.perf_counter()
                found[name] = ways[name](own)
                rates[name].append(len(own) / (time.perf_counter() - begin))
            pairs = zip(found["loop"], found["lensd"], strict=False)
            difference = max(difference, *(abs(one / other - 1) for one, other in pairs))
        steps = scaled(SMALL_STEP, share, A_PROMPT), scaled(ROLLOUTS, share, 2 * A_PROMPT)
        peaks = [_peak(daemon, ways["lensd"], list(islice(source, step))) for step in steps]
        reward.close()
    total, own_tokens = alone.tokens(warm_up[0])
    return Report(
        name="rewards",
        setting=f"SmolLM2-135M, {a_round * rounds} rollouts of {total} tokens, {own_tokens} of them rationale, "
        f"{A_PROMPT} a prompt; {shares['loop']} and {shares['batches']} a round for the baselines, {a_round} for lensd",
        ratios=[
            Ratio("rewards a second", _NAMES["loop"], pairwise(rates["lensd"], rates["loop"]), at_least=OVER_LOOP),
            Ratio("rewards a second", _NAMES["batches"], pairwise(rates["lensd"], rates["batches"]), at_least=OVER_BATCHES),
            Ratio(f"peak memory, {steps[1]} rollouts a step", f"{steps[0]} a step", [peaks[1] / peaks[0]], at_most=GROWTH),
        ],
        checks=[
            Check(
                f"self-certainties are the loop's, to {TOLERANCE:.0e} of each",
                f"apart by {difference:.1e}",
                difference <= TOLERANCE,
            )
        ],
        figures=[
            ("a second", ", ".join(f"{name} {statistics.median(rate):.2f}" for name, rate in rates.items())),
            ("daemon's peak", f"{peaks[0] / _MIB:.0f}, {peaks[1] / _MIB:.0f} MiB"),
        ],
    )  # fmt: skip


def _peak(daemon: Daemon, run: Callable[[Sequence[Rollout]], Any], step: Sequence[Rollout]) -> int:
    """Bytes the daemon holds at most while it scores a step."""
    forget_peak(daemon.process.pid)
    run(step)
    peak = peak_bytes(daemon.process.pid)
    assert peak is not None, "peak memory is read from /proc, which this system does not have"
    return peak


def _score(reward: ShopR1Reward, batch: Sequence[Rollout]) -> list[float]:
    rows = reward.score([r.context for r in batch], [r.output for r in batch], [r.reference for r in batch])
    return [row["self_certainty"] for row in rows]
