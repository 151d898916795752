"""What needs a GPU: skipped, saying so, where torch sees none. All of it together: ``make test-gpu``."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pytest
import torch

from lensd_server.tiny_engine import TinyEngine

GPU = "cuda:0"


@pytest.fixture(autouse=True, scope="session")
def gpu() -> str:
    """The device under test."""
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    return GPU


@contextmanager
def opened(models: Sequence[str], device: str) -> Iterator[TinyEngine]:
    """An engine with tiny ``models`` on ``device``."""
    engine = TinyEngine(models, device=device)
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture
def allowed_bytes() -> Iterator[None]:
    """All of the GPU's memory again, whatever a test has allowed this process."""
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def allow(more_bytes: int) -> None:
    """Lets this process allocate ``more_bytes`` beside what it has now, and no more."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + more_bytes) / total)
