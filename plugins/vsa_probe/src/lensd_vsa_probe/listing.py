"""Tensors as Python numbers, with types that a checker can follow."""

from typing import Any, cast

from torch import Tensor


def floats(tensor: Tensor) -> list[float]:
    """``tensor``, flattened."""
    listed: Any = tensor.flatten().double()
    return cast("list[float]", listed.tolist())


def integers(tensor: Tensor) -> list[int]:
    """``tensor``, flattened."""
    listed: Any = tensor.flatten().long()
    return cast("list[int]", listed.tolist())
