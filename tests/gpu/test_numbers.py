"""A GPU gives the numbers that the CPU gives, in any company."""

import random
from collections.abc import Iterator

import pytest

from lensd_api import Analyzer
from lensd_api.testing import Job, differences
from lensd_server.tiny_engine import TinyEngine
from lensd_server.tiny_models import TINY, VOCAB_SIZE
from tests.gpu.conftest import opened
from tests.gpu.probes import Sites, Statistics, Writes

#: fp32 through three layers with another library's order of summing.
ELSEWHERE = 1e-4


def rows(seed: int, *lengths: int) -> list[list[int]]:
    """Seeded token rows without special tokens."""
    draw = random.Random(seed)
    return [[draw.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in lengths]


ROWS = rows(1, 3, 40, 17, 40, 90)
JOBS: list[tuple[str, Analyzer, dict[str, object]]] = [
    ("sites", Sites(), {"rows": ROWS}),
    ("sites with gaps", Sites(), {"rows": rows(2, 12, 30), "gaps": True}),
    ("statistics", Statistics(), {"rows": ROWS}),
    ("greedy", Writes(), {"rows": ROWS}),
    ("drawn", Writes(), {"rows": ROWS, "temperature": 1.0, "seed": 5}),
]


@pytest.fixture(scope="module", params=sorted(TINY))
def both(request: pytest.FixtureRequest, gpu: str) -> Iterator[tuple[TinyEngine, TinyEngine, str]]:
    """One architecture on the CPU and on the GPU."""
    with opened([request.param], "cpu") as on_cpu, opened([request.param], gpu) as on_gpu:
        yield on_cpu, on_gpu, request.param


@pytest.mark.parametrize(("analyzer", "params"), [job[1:] for job in JOBS], ids=[job[0] for job in JOBS])
def test_the_gpu_says_what_the_cpu_says(
    both: tuple[TinyEngine, TinyEngine, str], analyzer: Analyzer, params: dict[str, object]
) -> None:
    on_cpu, on_gpu, model = both
    job = Job(params, model)
    expected, found = on_cpu.run(analyzer, job), on_gpu.run(analyzer, job)
    assert (found.error, expected.error) == (None, None)
    assert found.results or "gaps" in params  # some models take no positions
    assert differences(found.results, expected.results, ELSEWHERE) == []


@pytest.mark.parametrize(("analyzer", "params"), [job[1:] for job in JOBS], ids=[job[0] for job in JOBS])
def test_a_row_gives_in_company_what_it_gives_alone(
    both: tuple[TinyEngine, TinyEngine, str], analyzer: Analyzer, params: dict[str, object]
) -> None:
    """Each row as an analysis of its own, all at once and one after another."""
    _, engine, model = both
    each: list[list[int]] = params["rows"]  # type: ignore[assignment]
    jobs = [Job({**params, "rows": [row]}, model) for row in each]
    alone = [engine.run(analyzer, job) for job in jobs]
    together = engine.run_together(analyzer, jobs)
    for one, other in zip(alone, together, strict=True):
        assert (one.error, other.error) == (None, None)
        assert differences(other.results, one.results) == []


def test_two_models_on_one_gpu_do_not_disturb_each_other(gpu: str) -> None:
    """Their streams run side by side; what one frees, the other may be given."""
    names = ["llama", "gpt2", "mixtral", "gemma2"]
    texts = [rows(seed, 5 + 7 * seed % 80) for seed in range(40)]
    with opened(names, "cpu") as on_cpu, opened(names, gpu) as on_gpu:
        jobs = [Job({"rows": text}, name) for text in texts for name in names]
        expected = on_cpu.run_together(Statistics(), jobs)
        for _ in range(3):
            found = on_gpu.run_together(Statistics(), jobs)
            for mine, theirs in zip(found, expected, strict=True):
                assert mine.error is None
                assert differences(mine.results, theirs.results, ELSEWHERE) == []
