"""Bipolar hypervectors {-1, +1}^D and what is done with them: bind, bundle, compare (MAP-B).

torch-hd brings the algebra. It is imported at first use: with it come SciPy and pandas, and a daemon
whose callers never probe should not wait for them at every start.
"""

import math
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor


@cache
def _torchhd() -> Any:
    import torchhd  # pyright: ignore[reportMissingTypeStubs]

    return torchhd


def warm_up() -> None:
    """Imports torch-hd, which takes seconds: call it off the event loop."""
    _torchhd()


def random_hypervectors(count: int, dim: int, seed: int) -> Tensor:
    """[count, dim] fp32 of -1 and +1; equal arguments give equal vectors."""
    generator = torch.Generator().manual_seed(seed)
    drawn = _torchhd().random(count, dim, "MAP", generator=generator, dtype=torch.float32)
    return _plain(drawn)


def bind(*hypervectors: Tensor) -> Tensor:
    """Elementwise product: commutative, and its own inverse on bipolar vectors."""
    bound = _map(hypervectors[0])
    for other in hypervectors[1:]:
        bound = bound.bind(_map(other))
    return _plain(bound)


def bundle(hypervectors: Tensor) -> Tensor:
    """[n, ..., dim] -> [..., dim]: the sum over the first axis, made bipolar again.

    N(.): what is above zero becomes +1, everything else -1, ties included.
    """
    return _plain(_map(hypervectors.movedim(0, -2)).multibundle().normalize())


def bipolar(logits: Tensor) -> Tensor:
    """The same N(.) of any real vector."""
    return _plain(_map(logits).normalize())


def similarities(hypervectors: Tensor, codebook: Tensor) -> Tensor:
    """Cosines: [..., dim] with [concept, dim] -> [..., concept]."""
    flat = hypervectors.reshape(-1, hypervectors.shape[-1])
    cosines = _plain(_torchhd().cosine_similarity(_map(flat), _map(codebook)))
    return cosines.reshape(*hypervectors.shape[:-1], len(codebook))


def default_threshold(dim: int) -> float:
    """The cosine from which a concept counts as extracted: 0.1 at D = 4096, the same 6.4 standard
    deviations of chance (1/sqrt(D)) at any other."""
    return 6.4 / math.sqrt(dim)


def expected_error(dim: int, concepts: int) -> float:
    """How often a *perfect* two-pair encoding still unbinds to a wrong concept first.

    The target's cosine is about normal around 0.5, the others' around 0 with deviation 1/sqrt(D);
    the chance that the largest of the others wins, integrated over the target's.
    """
    if concepts < 2:
        return 0.0
    # 2001 points over eight deviations: far finer than anything the answer is used for.
    z = torch.linspace(-8.0, 8.0, 2001, dtype=torch.float64)
    target = 0.5 * math.sqrt(dim) + z * math.sqrt(0.75)
    density = torch.exp(-0.5 * z**2) / math.sqrt(2 * math.pi)
    beaten = 1 - (0.5 * torch.erfc(-target / math.sqrt(2))) ** (concepts - 1)
    return float(torch.trapezoid(density * beaten, z))


def product(hypervectors: Iterable[Tensor], like: Tensor) -> Tensor:
    """All of them bound together; ones, the neutral element, for none."""
    items = list(hypervectors)
    return bind(*items) if items else torch.ones_like(like)


def _map(tensor: Tensor) -> Any:
    return tensor.as_subclass(_torchhd().MAPTensor)


def _plain(tensor: Any) -> Tensor:
    return tensor.as_subclass(Tensor)
