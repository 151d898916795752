"""Peak resident memory of analyses in the engine over that of the same model's bare forwards."""

import json
import subprocess
import sys

from tests.bench.report import Ratio, Report

WORDS, MANY = 14, 16
MOST = 1.05
_MIB = 1024 * 1024


def measure(share: float) -> Report:
    """One process of its own, in which each way to work starts from the same size."""
    command = [sys.executable, "-m", "tests.bench.peaks", str(WORDS), str(MANY), str(share)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    peaks: dict[str, int | None] = json.loads(done.stdout.splitlines()[-1])
    ratios: list[Ratio] = []
    figures: list[tuple[str, str]] = []
    for name, label in (("one", "one prompt"), ("many", f"{MANY} prompts")):
        bare, engine = peaks[f"bare_{name}"], peaks[f"engine_{name}"]
        if bare and engine:
            baseline = "model and bare forwards"
            ratios.append(Ratio(f"peak memory of dla, {label}", baseline, [engine / bare], at_most=MOST))
            figures.append((f"peak, {label}", f"bare {bare / _MIB:.0f}, dla {engine / _MIB:.0f} MiB"))
    return Report(
        name="memory",
        setting=f"SmolLM2-135M in one process, prompts of {WORDS} words, DLA by head",
        ratios=ratios,
        figures=figures,
    )
