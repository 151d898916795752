"""Numbers for a reduce are where it computes."""

import torch

from lensd_api import upload

CPU = torch.device("cpu")


def test_numbers_become_a_tensor_of_their_own_or_a_stated_element_type() -> None:
    assert torch.equal(upload([3, 1], CPU), torch.tensor([3, 1]))
    assert torch.equal(upload((0.5, 1.5), CPU), torch.tensor([0.5, 1.5]))
    assert upload([1, 2], CPU, torch.float64).dtype == torch.float64
    assert upload([], CPU, torch.long).dtype == torch.long


def test_a_tensor_that_is_there_is_not_copied() -> None:
    there = torch.arange(3)
    assert upload(there, CPU) is there
