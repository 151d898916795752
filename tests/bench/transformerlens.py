"""Many callers over gRPC beside a loop of TransformerLens in a process of its own, on the same prompts.

TransformerLens lives in an environment below ``.bench/``, made once with pip, with this environment's torch
and transformers, and reads the same converted weights. Before anything is timed both must find the same.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from lensd_client import Client
from lensd_server.engine.device import usable_cores
from lensd_server.settings import EMBEDDED_NAME
from tests.bench.batching import shots_of
from tests.bench.contenders import UNIT, converted_weights
from tests.bench.load.drive import Bounds, closed_loop
from tests.bench.load.wire import Wire
from tests.bench.prompts import distinct_prompts
from tests.bench.report import OUT, Check, Ratio, Report, pairwise, scaled
from tests.e2e.daemon import running_daemon

VERSION = "4.3"
WORDS, CLIENTS = 14, 32
A_ROUND, THEIRS_A_ROUND, ROUNDS = 192, 24, 5
LEAST = 5.0
#: Of the largest value: both are fp32, theirs with norm gains folded into the weights.
TOLERANCE = 1e-4


class Worker:
    """TransformerLens at the other end of a pipe."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process = process
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def run(self, prompts: Sequence[str], *, sparing: bool) -> dict[str, Any]:
        """Attributes one prompt after another; the seconds, and what the last one gave."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        rows = [self._tokenizer.encode(prompt) for prompt in prompts]
        print(json.dumps({"rows": rows, "sparing": sparing}), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def rate(self, prompts: Sequence[str], *, sparing: bool) -> float:
        """Prompts a second."""
        return len(prompts) / self.run(prompts, sparing=sparing)["seconds"]


def measure(share: float) -> Report:
    """Agreement first, then rounds in turns."""
    rounds = scaled(ROUNDS, share)
    theirs, a_round = scaled(THEIRS_A_ROUND, share, 2), scaled(A_ROUND, share, CLIENTS)
    prompts = distinct_prompts(WORDS, seed=51)
    ours: list[float] = []
    rates: dict[bool, list[float]] = {False: [], True: []}
    with (
        tempfile.TemporaryDirectory() as state,
        running_daemon(Path(state)) as daemon,
        _worker(converted_weights()) as worker,
        asyncio.Runner() as loop,
    ):
        apart = _apart(daemon.grpc, worker, list(islice(prompts, 4)))
        loop.run(_rate(daemon.grpc, list(islice(prompts, CLIENTS))))
        for _ in range(rounds):
            for sparing, found in rates.items():
                found.append(worker.rate(list(islice(prompts, theirs)), sparing=sparing))
            ours.append(loop.run(_rate(daemon.grpc, list(islice(prompts, a_round)))))
    name = f"loop of TransformerLens {VERSION}"
    return Report(
        name="transformerlens",
        setting=f"SmolLM2-135M, prompts of {WORDS} words, DLA by {UNIT}; {CLIENTS} clients, {a_round} analyses a round, "
        f"{theirs} of TransformerLens",
        ratios=[
            Ratio(
                f"analyses a second, {CLIENTS} clients", name, pairwise(ours, rates[False]), at_least=LEAST
            ),
            Ratio("the same", f"{name} that caches only what it needs", pairwise(ours, rates[True])),
        ],
        checks=[
            Check(
                f"both find the same, to {TOLERANCE:.0e} of the largest head",
                f"apart by {apart:.1e} of it",
                apart <= TOLERANCE,
            )
        ],
    )


def _apart(target: str, worker: Worker, prompts: Sequence[str]) -> float:
    """Largest difference of a head's part of the logit, over the largest part."""
    apart = 0.0
    with Client(target) as lens:
        for prompt in prompts:
            theirs = worker.run([prompt], sparing=True)
            run = lens.analyze("dla", EMBEDDED_NAME, prompt=prompt, unit=UNIT, target=theirs["target"])
            heads = run["heads"].to_numpy().reshape(-1)
            expected = np.asarray(theirs["heads"])
            apart = max(apart, float(np.abs(heads - expected).max() / np.abs(expected).max()))
    return apart


async def _rate(target: str, prompts: Sequence[str]) -> float:
    wire = Wire(target)
    tally = await closed_loop(wire, shots_of(prompts, "lens"), CLIENTS, Bounds(len(prompts)))
    await wire.close()
    assert tally.completed == len(prompts), tally.ends
    return tally.rate


@contextmanager
def _worker(folder: Path) -> Iterator[Worker]:
    script = Path(__file__).with_name("transformerlens_worker.py")
    command = [str(_environment()), str(script), str(folder), str(usable_cores())]
    with tempfile.TemporaryFile("w+") as log:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log}
        with subprocess.Popen(command, text=True, **pipes) as process:
            yield Worker(process, folder)
            assert process.stdin is not None
            process.stdin.close()


def _environment() -> Path:
    """Its interpreter; makes the environment if there is none with these versions."""
    same = [f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "transformers")]
    wanted = [f"transformer-lens=={VERSION}.*", *same]
    folder = (OUT / "transformer-lens").absolute()
    python, stamp = folder / "bin" / "python", folder / "installed"
    if not stamp.exists() or stamp.read_text(encoding="utf-8").split() != wanted:
        print(f"installing {' '.join(wanted)} into {folder} (once)", file=sys.stderr)
        venv.create(folder, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *wanted], check=True, stdout=sys.stderr)
        stamp.write_text("\n".join(wanted), encoding="utf-8")
    return python
