"""``make bench``: what attribution costs beside a bare forward pass, in one run of a few minutes.

Everything that is compared takes turns in one process, so that what else the machine does meets
all of it alike; read the ratios rather than the seconds. Results also go to ``.bench/``.
"""

import json
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import torch
import transformers

from tests.bench.contenders import BareForward, Engine, OverGrpc, converted_weights
from tests.bench.memory import peak_bytes
from tests.bench.prompts import distinct_prompts
from tests.bench.report import Report, print_report
from tests.bench.timing import Latency, Throughput, compare_throughput, take_turns
from tests.e2e.daemon import Daemon, running_daemon

WORDS = 14
PAIRS = 48
#: Concurrent clients -> analyses a round. Few requests lose up to a tenth to the first and last batch.
CLIENTS = {1: 24, 4: 64, 16: 128}
ROUNDS = 3
_BARE_A_ROUND = 24


def main() -> None:
    """Measures everything and prints it."""
    started = time.monotonic()
    folder = converted_weights()
    bare, engine = BareForward(folder), Engine()
    with tempfile.TemporaryDirectory() as state, running_daemon(Path(state)) as daemon:
        grpc = OverGrpc(daemon.grpc, max(CLIENTS))
        latency = _latency(bare, engine, grpc)
        throughput = {clients: _throughput(bare, engine, grpc, clients) for clients in CLIENTS}
        daemon_peak = _daemon_peak(daemon)
        grpc.close()
    engine.close()
    report = Report(
        machine=f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
        tokens=bare.tokens(next(distinct_prompts(WORDS, seed=0))),
        latency=latency,
        throughput=throughput,
        peaks=_peaks(),
        daemon_peak=daemon_peak,
        seconds=time.monotonic() - started,
    )
    print_report(report)
    out = Path(".bench")
    out.mkdir(exist_ok=True)
    (out / f"{time.strftime('%Y%m%dT%H%M%S')}.json").write_text(json.dumps(asdict(report), indent=1))


def _latency(bare: BareForward, engine: Engine, grpc: OverGrpc) -> dict[str, Latency]:
    warm_up, prompts = list(islice(distinct_prompts(WORDS, seed=1), 4)), distinct_prompts(WORDS, seed=2)
    bare.prepare([*warm_up, *islice(distinct_prompts(WORDS, seed=2), PAIRS)])
    contenders = {"bare": bare.run, "engine": engine.run, "grpc": grpc.run}
    take_turns(contenders, iter(warm_up), len(warm_up))
    return take_turns(contenders, prompts, PAIRS)


def _throughput(bare: BareForward, engine: Engine, grpc: OverGrpc, clients: int) -> dict[str, Throughput]:
    seed = 100 + clients
    sizes = {"bare": _BARE_A_ROUND, "engine": CLIENTS[clients], "grpc": CLIENTS[clients]}
    bare.prepare(list(islice(distinct_prompts(WORDS, seed), ROUNDS * sum(sizes.values()))))
    return compare_throughput(
        {
            "bare": bare.run_all,
            "engine": lambda prompts: engine.run_all(prompts, clients),
            "grpc": lambda prompts: grpc.run_all(prompts, clients),
        },
        distinct_prompts(WORDS, seed),
        sizes,
        ROUNDS,
    )


def _daemon_peak(daemon: Daemon) -> int | None:
    return peak_bytes(daemon.process.pid)


def _peaks() -> dict[str, int | None]:
    command = [sys.executable, "-m", "tests.bench.peaks", str(WORDS), str(max(CLIENTS))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
