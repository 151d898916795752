"""Every tiny architecture, inspected once, and short ways to run it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor

from lensd_api import Site
from lensd_server.engine.anatomy.capture import GatherGroup, run_batch
from lensd_server.engine.anatomy.inspect import InspectedModel, inspect_model
from lensd_server.tiny_models import TINY, VOCAB_SIZE

#: fp32 rounding through three layers, relative to the largest magnitude compared.
TOLERANCE = 1e-5


@dataclass(frozen=True, repr=False)
class Lens:
    """A tiny model with its anatomy. Shared by tests: run it, do not change it."""

    name: str
    model: InspectedModel

    def tokens(self, length: int, seed: int = 1) -> tuple[int, ...]:
        """Seeded token ids, special ones left out."""
        generator = torch.Generator().manual_seed(seed)
        return tuple(torch.randint(3, VOCAB_SIZE, (length,), generator=generator).tolist())

    def run(
        self,
        rows: Sequence[Sequence[int]],
        groups: Sequence[GatherGroup],
        masks: Sequence[Sequence[int]] | None = None,
        position_ids: Sequence[Sequence[int]] | None = None,
    ) -> list[dict[Site, Tensor]]:
        """The rows, padded on the right, in one batch."""
        width = max(map(len, rows))
        lengths = [len(row) for row in rows]
        seen = masks or [[1] * length for length in lengths]

        def padded(values: Iterable[Sequence[int]]) -> Tensor:
            return torch.tensor([[*v, *([0] * (width - len(v)))] for v in values])

        positions = padded(position_ids) if position_ids is not None else None
        return run_batch(self.model, padded(rows), padded(seen), positions, lengths, groups)

    def capture(
        self, tokens: Sequence[int], *sites: Site, layers: tuple[int, ...] | None = None
    ) -> dict[Site, Tensor]:
        """One row alone, at all positions, and at all layers unless told."""
        return self.run([tokens], [self.group(*sites, rows=(len(tokens),), layers=layers)])[0]

    def group(self, *sites: Site, rows: Sequence[int], layers: tuple[int, ...] | None = None) -> GatherGroup:
        """All positions of the first rows, whose lengths are ``rows``."""
        everywhere = tuple(range(self.model.anatomy.n_layers))
        positions = tuple(tuple(range(length)) for length in rows)
        return GatherGroup(
            frozenset(sites), everywhere if layers is None else layers, tuple(range(len(rows))), positions
        )


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost these models more than they bring, all the more on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@cache
def _lens(name: str) -> Lens:
    return Lens(name, inspect_model(TINY[name]()))


@pytest.fixture(params=sorted(TINY))
def lens(request: pytest.FixtureRequest) -> Lens:
    """Each architecture in turn."""
    return _lens(request.param)


@pytest.fixture
def lens_of() -> Callable[[str], Lens]:
    """An architecture by name."""
    return _lens


def assert_close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    """Equal up to ``tolerance`` times the largest magnitude expected."""
    assert found.shape == expected.shape
    gap = (found.double() - expected.double()).abs().max()
    assert gap <= tolerance * expected.double().abs().max(), f"off by {gap:.2e}"


@pytest.fixture
def close() -> Callable[..., None]:
    """Asserts that tensors are equal up to rounding."""
    return assert_close
