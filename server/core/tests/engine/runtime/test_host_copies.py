"""Results leave a device in few copies, and share nothing with it or each other."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lensd_server.engine.host_copies import copy_together

BASE = torch.arange(240.0).reshape(12, 20)


@pytest.fixture
def copies() -> list[Tensor]:
    """What was copied."""
    return []


@pytest.fixture
def copy(copies: list[Tensor]) -> Callable[[Tensor], Tensor]:
    def copied(tensor: Tensor) -> Tensor:
        copies.append(tensor)
        return tensor.clone()

    return copied


def test_rows_of_one_tensor_are_one_copy(copies: list[Tensor], copy: Callable[[Tensor], Tensor]) -> None:
    rows = [BASE[i : i + 2] for i in range(2, 12, 2)]
    found = copy_together(rows, copy)
    assert [tensor.numel() for tensor in copies] == [200]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, rows, strict=True))


def test_few_numbers_of_a_large_tensor_do_not_bring_it_along(
    copies: list[Tensor], copy: Callable[[Tensor], Tensor]
) -> None:
    parts = [BASE[0], BASE[11], BASE[5, 3]]
    found = copy_together(parts, copy)
    assert sum(tensor.numel() for tensor in copies) == 41
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, parts, strict=True))


def test_any_part_comes_back_as_it_was(copy: Callable[[Tensor], Tensor]) -> None:
    other = torch.arange(24).reshape(2, 3, 4)
    parts = [
        BASE[:, 3],
        BASE.T[4:9],
        BASE[0, 5].expand(4),
        BASE[:0],
        other.permute(2, 0, 1),
        other[1, 2, 3],
        BASE[3:9, 2:7:2],
        torch.empty(0),
        other.view(torch.int32),
    ]
    for mine, theirs in zip(copy_together(parts, copy), parts, strict=True):
        assert mine.dtype == theirs.dtype
        assert torch.equal(mine, theirs)


def test_nothing_is_nothing(copy: Callable[[Tensor], Tensor]) -> None:
    assert copy_together([], copy) == []
