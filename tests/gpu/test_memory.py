"""A GPU whose memory runs out: whoever asked for too much is told, and nobody else notices."""

from typing import Any

import pytest
import torch

from lensd_api import DeviceOutOfMemory
from lensd_api.testing import Job, differences
from lensd_server.tiny_engine import TinyEngine
from tests.gpu.conftest import allow, opened
from tests.gpu.probes import Greedy, Statistics
from tests.gpu.test_numbers import rows

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def engine(gpu: str) -> Any:
    with opened(["llama"], gpu) as running:
        yield running


def test_only_who_asks_for_too_much_is_refused(engine: TinyEngine, allowed_bytes: None) -> None:
    modest = [Job({"tokens": tokens[0]}, "llama") for tokens in (rows(seed, 12) for seed in range(12))]
    expected = engine.run_together(Greedy(), modest)
    allow(256 * MIB)
    too_much = Job({"tokens": [5, 6, 7], "bytes": 4096 * MIB}, "llama")
    found = engine.run_together(Greedy(), [*modest[:6], too_much, *modest[6:]])
    refused = found.pop(6)
    assert isinstance(refused.error, DeviceOutOfMemory), refused.error
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.error is None
        assert differences(mine.results, theirs.results) == []
    assert torch.cuda.memory_reserved() < 512 * MIB


def test_a_batch_that_does_not_fit_runs_in_smaller_ones(engine: TinyEngine, allowed_bytes: None) -> None:
    """Each of them fits alone, all together do not."""
    allow(400 * MIB)
    jobs = [
        Job({"tokens": tokens[0], "bytes": 150 * MIB}, "llama") for tokens in (rows(s, 9) for s in range(8))
    ]
    found = engine.run_together(Greedy(), jobs)
    assert [outcome.error for outcome in found] == [None] * 8


def test_memory_that_is_somebody_elses_fails_nobody_for_good(engine: TinyEngine, allowed_bytes: None) -> None:
    job = Job({"rows": rows(3, 60)}, "llama")
    expected = engine.run(Statistics(), job)
    allow(64 * MIB)
    hog = torch.empty(62 * MIB, dtype=torch.uint8, device="cuda")
    engine.run(Statistics(), job)  # may fail
    del hog
    torch.cuda.set_per_process_memory_fraction(1.0)
    found = engine.run(Statistics(), job)
    assert found.error is None
    assert differences(found.results, expected.results) == []


def test_results_are_in_host_memory_of_their_own(engine: TinyEngine) -> None:
    outcome = engine.run(Greedy(), Job({"tokens": [5, 6, 7]}, "llama"))
    (found,) = outcome.results
    data = found.data  # type: ignore[union-attr]
    assert data.device.type == "cpu"
    assert not data.is_pinned()
    assert not data.is_inference()
