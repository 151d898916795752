"""``python -m tests.bench.rewards``: Shop-R1 rewards over gRPC beside other ways to their numbers.

Rollouts of some 200 rationale tokens, eight a prompt. The contenders take turns; all of them meet what
else the machine does. Read the ratios. Results also go to ``.bench/``.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from lensd_client.trl import ShopR1Reward
from lensd_server.settings import EMBEDDED_NAME
from tests.bench.contenders import converted_weights
from tests.bench.memory import forget_peak, peak_bytes
from tests.bench.reward_contenders import BATCH, Transformers
from tests.bench.rollouts import A_PROMPT, Rollout, rollouts
from tests.e2e.daemon import running_daemon

ROUNDS = 4
#: Rewards a second over those of the loop, and over the batched log-probabilities.
MIN_OVER_LOOP, MIN_OVER_BATCHES = 3.0, 1.0
#: Largest growth of the daemon from its first round to its last, as a share of its size.
MAX_GROWTH = 1.05
_MIB = 1024 * 1024
_NAMES = {
    "loop": "transformers, one sample at a time",
    "batches": f"log-probabilities as in TRL, batches of {BATCH}",
    "lensd": "shop-r1 over gRPC",
}


@dataclass(frozen=True, slots=True)
class Report:
    """Rewards a second by round, peak bytes, and how far self-certainties are apart."""

    machine: str
    tokens: tuple[int, int]
    rollouts: int
    rates: dict[str, list[float]]
    peaks: dict[str, list[int | None]]
    largest_difference: float
    seconds: float

    def ratio(self, base: str) -> float:
        """Median over rounds of lensd's rate over another's in the same round."""
        pairs = zip(self.rates["lensd"], self.rates[base], strict=True)
        return statistics.median(mine / other for mine, other in pairs)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=256, help="rollouts that lensd scores, in all")
    report = measure(parser.parse_args().rollouts)
    print_report(report)
    out = Path(".bench")
    out.mkdir(exist_ok=True)
    name = f"rewards-{time.strftime('%Y%m%dT%H%M%S')}.json"
    (out / name).write_text(json.dumps(asdict(report), indent=1))


def measure(count: int) -> Report:
    """``count`` rollouts by lensd in :data:`ROUNDS` rounds; the others do a part of each round's."""
    started = time.monotonic()
    a_round = max(A_PROMPT, count // ROUNDS)
    shares = {"loop": max(4, a_round // 8), "batches": max(BATCH, a_round // 4), "lensd": a_round}
    alone = Transformers(converted_weights())
    rates: dict[str, list[float]] = {name: [] for name in shares}
    peaks: dict[str, list[int | None]] = {name: [] for name in shares}
    difference = 0.0
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
        for number in range(ROUNDS):
            batch = list(islice(source, a_round))
            found: dict[str, Any] = {}
            for name in _turn(list(ways), number):
                forget_peak()
                own = batch[: shares[name]]
                begin = time.perf_counter()
                found[name] = ways[name](own)
                rates[name].append(len(own) / (time.perf_counter() - begin))
                peaks[name].append(peak_bytes(daemon.process.pid if name == "lensd" else None))
            pairs = zip(found["loop"], found["lensd"], strict=False)
            difference = max(difference, *(abs(one / other - 1) for one, other in pairs))
        reward.close()
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    seconds = time.monotonic() - started
    tokens = alone.tokens(warm_up[0])
    return Report(machine, tokens, a_round * ROUNDS, rates, peaks, difference, seconds)


def print_report(report: Report) -> None:
    """The table, then the targets."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 110  # a file or a pipe
    total, own = report.tokens
    console.print(
        f"SmolLM2-135M, {report.rollouts} rollouts of {total} tokens, {own} of them rationale, "
        f"{A_PROMPT} a prompt; {report.machine}"
    )
    table = Table(
        "way",
        "a second",
        "lensd is x",
        "peak MiB, first round",
        "last",
        title="Rewards",
        title_justify="left",
    )
    for name, label in _NAMES.items():
        first, last = (
            f"{peak / _MIB:.0f}" if peak else "" for peak in (report.peaks[name][0], report.peaks[name][-1])
        )
        table.add_row(
            label, f"{statistics.median(report.rates[name]):.2f}", f"{report.ratio(name):.2f}", first, last
        )
    console.print(table)
    console.print("Each context is run once a rollout: prefixes are not shared yet.")
    console.print(
        f"largest relative difference of self-certainties to the loop's: {report.largest_difference:.1e}"
    )
    console.print("\nTargets")
    for what, value, target in (
        ("over the loop", report.ratio("loop"), MIN_OVER_LOOP),
        ("over log-probabilities in batches", report.ratio("batches"), MIN_OVER_BATCHES),
    ):
        console.print(
            f"  rewards a second {what}: {value:.2f} (at least {target}): {_verdict(value >= target)}"
        )
    first, last = report.peaks["lensd"][0], report.peaks["lensd"][-1]
    if first and last:
        grown = last / first
        console.print(
            f"  daemon, last round over first: {grown:.3f} (at most {MAX_GROWTH}): {_verdict(grown <= MAX_GROWTH)}"
        )
    console.print(f"\n{report.seconds:.0f} s; medians of {ROUNDS} rounds")


def _score(reward: ShopR1Reward, batch: Sequence[Rollout]) -> list[float]:
    rows = reward.score([r.context for r in batch], [r.output for r in batch], [r.reference for r in batch])
    return [row["self_certainty"] for row in rows]


def _turn(names: list[str], number: int) -> list[str]:
    shift = number % len(names)  # nobody always runs after the same neighbour
    return names[shift:] + names[:shift]


def _verdict(is_met: bool) -> str:
    return "[green]met[/]" if is_met else "[red]missed[/]"


if __name__ == "__main__":
    main()
