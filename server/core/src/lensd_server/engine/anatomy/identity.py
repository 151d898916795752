"""How far an identity is off, and how far it may be.

Each element's deviation is divided by the sum of the magnitudes that were added up in it, which
is what rounding is proportional to. A fault is thus seen in a small element beside a huge one.
"""

import torch
from torch import Tensor


def tolerance(dtype: torch.dtype) -> float:
    """Largest deviation, as :func:`deviation` measures it, put down to rounding in ``dtype``.

    A handful of roundings of half an epsilon each: four epsilons in fp16 and bf16. In fp32
    sums over thousands of products are taken in any order, so 1e-5 (80 epsilons).
    """
    return max(1e-5, 4 * torch.finfo(dtype).eps)


def deviation(found: Tensor, expected: Tensor, *terms: Tensor) -> float:
    """Largest |found - expected| over elements, relative to the sum of |terms| there.

    NaN anywhere gives NaN, which passes no comparison.
    """
    magnitude = expected.double().abs()
    for term in terms:
        magnitude = magnitude + term.double().abs()
    gap = (found.double() - expected.double()).abs()
    # An element that is zero on both sides is right; one that is off against zero is not.
    return torch.where(gap == 0, gap, gap / magnitude.clamp_min(torch.finfo(torch.float32).tiny)).max().item()
