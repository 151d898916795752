"""Long logs: linear time, bounded memory, edges on the stream while the log is still read."""

import json
import random
import re
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from lensd_api import Graph
from lensd_graphtracer.formats import read_trace
from lensd_graphtracer.idg import build
from lensd_graphtracer.index import TermIndex
from lensd_graphtracer.references import find_terms
from plugins.graphtracer.tests.logs import BENCHMARK, needs_benchmark, plain, run

#: Of the checkout, which the modules of tests are named from.
ROOT = Path(__file__).parents[3]

#: Stated in the README.
MEMORY_130_STEPS_MIB, MEMORY_10_000_STEPS_MIB, FIRST_EDGES_S = 32, 128, 2.0


def long_log(steps: int, words: int) -> dict[str, object]:
    """Steps of random words and one number each, every third of which a later step repeats."""
    draw = random.Random(0)
    numbers = [str(draw.randint(10_000, 99_999)) for _ in range(steps)]
    stock = [f"{a}{b}{c}" for a in "bcdfgl" for b in "aeiou" for c in ("ra", "nt", "lo", "sk", "me")]
    said = [
        (
            f"Agent{i % 5}",
            f"{' '.join(draw.choices(stock, k=words))} {numbers[i]} and {numbers[max(0, i - 3)]}",
        )
        for i in range(steps)
    ]
    return plain(*said)


@needs_benchmark
def test_the_longest_log_streams_edges_at_once_within_the_stated_memory() -> None:
    path = max(BENCHMARK.rglob("*.json"), key=lambda p: p.stat().st_size)
    log = json.loads(path.read_text(encoding="utf-8"))
    assert len(log["history"]) >= 120
    tracemalloc.start()
    try:
        started = time.perf_counter()
        first = next(time.perf_counter() - started for r in run(log) if isinstance(r, Graph) and r.edges)
        assert first < FIRST_EDGES_S
        for _ in run(log):
            pass
        assert tracemalloc.get_traced_memory()[1] < MEMORY_130_STEPS_MIB * 2**20
    finally:
        tracemalloc.stop()


def test_edges_come_while_the_log_is_still_read() -> None:
    graphs = [r for r in run(long_log(200, 20)) if isinstance(r, Graph)]
    assert len(graphs) > 10
    assert not any(g.nodes for g in graphs[:-1])
    assert [g.last for g in graphs] == [False] * (len(graphs) - 1) + [True]


def measure_long_log() -> None:
    """Prints the names of the results of 10,000 steps, and by how many bytes the process grew at most."""
    log = long_log(10_000, 10)
    for _ in run(long_log(50, 10)):  # imports and the like
        pass
    before = _memory("VmRSS")
    names = [result.name for result in run(log)]
    print(json.dumps({"names": names, "grew": _memory("VmHWM") - before}))


def _memory(line: str) -> int:
    """Bytes of this process as Linux states them: resident now (VmRSS) or at most (VmHWM)."""
    (kib,) = re.findall(rf"^{line}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(kib) * 1024


@pytest.mark.slow
def test_ten_thousand_steps_are_analysed_within_the_stated_memory() -> None:
    # In a process of its own: tracing each allocation takes ten times as long as the analysis.
    program = f"from {__name__} import measure_long_log; measure_long_log()"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert measured["names"][-2:] == ["root_cause", "reading"]
    assert 0 < measured["grew"] < MEMORY_10_000_STEPS_MIB * 2**20


def test_time_grows_with_the_text_and_not_with_its_square() -> None:
    def spent(steps: int) -> float:
        trace = read_trace(long_log(steps, 30))
        started = time.process_time()
        build(trace)
        return time.process_time() - started

    spent(100)  # warm up
    assert spent(2000) < 12 * max(spent(400), 0.01)  # 5 times the text; a square would be 25 times


def test_a_full_index_says_what_it_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lensd_graphtracer.index.MAX_TERMS", 3)
    index = TermIndex()
    index.add(0, find_terms("one two three four five six seven eight"))
    assert index.dropped == 2
