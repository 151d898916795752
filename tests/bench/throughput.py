"""Several callers at once: analyses a second over gRPC, and in the engine, over one forward after another."""

import statistics
import tempfile
from itertools import islice
from pathlib import Path

from tests.bench.contenders import BareForward, Engine, OverGrpc, converted_weights
from tests.bench.prompts import distinct_prompts
from tests.bench.report import Ratio, Report, pairwise, scaled
from tests.bench.timing import compare_throughput
from tests.e2e.daemon import running_daemon

WORDS = 14
#: Clients -> analyses a round. Few requests lose up to a tenth to the first and last batch.
CLIENTS = {1: 24, 4: 64, 16: 128}
ROUNDS = 3
LEAST = 2.5
_BARE_A_ROUND = 24
_BARE = "forwards one by one"


def measure(share: float) -> Report:
    """Rounds of all contenders, for each number of clients."""
    rounds = scaled(ROUNDS, share)
    bare, engine = BareForward(converted_weights()), Engine()
    ratios: list[Ratio] = []
    figures: list[tuple[str, str]] = []
    with tempfile.TemporaryDirectory() as state, running_daemon(Path(state)) as daemon:
        grpc = OverGrpc(daemon.grpc, max(CLIENTS))
        for clients in CLIENTS:
            found = _rates(bare, engine, grpc, clients, rounds)
            for name, label in (("grpc", "over gRPC"), ("engine", "in the engine")):
                target = LEAST if (name, clients) == ("grpc", max(CLIENTS)) else None
                what = f"rate of dla {label}, {clients} at once"
                ratios.append(Ratio(what, _BARE, pairwise(found[name], found["bare"]), at_least=target))
            each = ", ".join(f"{name} {statistics.median(rate):.1f}" for name, rate in found.items())
            figures.append((f"a second, {clients} at once", each))
        grpc.close()
    engine.close()
    return Report(
        name="throughput",
        setting=f"SmolLM2-135M, prompts of {WORDS} words, DLA by head; every prompt differs",
        ratios=ratios,
        figures=figures,
    )


def _rates(
    bare: BareForward, engine: Engine, grpc: OverGrpc, clients: int, rounds: int
) -> dict[str, list[float]]:
    seed = 100 + clients
    sizes = {"bare": _BARE_A_ROUND, "engine": CLIENTS[clients], "grpc": CLIENTS[clients]}
    bare.prepare(list(islice(distinct_prompts(WORDS, seed), rounds * sum(sizes.values()))))
    return compare_throughput(
        {
            "bare": bare.run_all,
            "engine": lambda prompts: engine.run_all(prompts, clients),
            "grpc": lambda prompts: grpc.run_all(prompts, clients),
        },
        distinct_prompts(WORDS, seed),
        sizes,
        rounds,
    )
