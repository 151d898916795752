"""The numbers reduced on the device: blocks, uniform predictions, extremes."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import pytest
import torch
from torch import Tensor

from lensd_api import Site, Stack
from lensd_shop_r1 import certainty
from lensd_shop_r1.certainty import TokenNumbers, positions_at_once, token_numbers

MODES = ("kl_u_p", "kl_p_u", "as_printed")


@dataclass
class Sizes:
    vocab_size: int


class View:
    """A head that returns what it is given; ``most`` is the largest block it was asked for."""

    def __init__(self, vocab_size: int) -> None:
        self.anatomy = Sizes(vocab_size)
        self.most = 0

    def logits(self, residual: Tensor) -> Tensor:
        self.most = max(self.most, len(residual))
        return residual

    def upload(self, values: Sequence[int], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype)


def numbers(logits: Tensor, tokens: tuple[int, ...]) -> TokenNumbers:
    positions = tuple(range(len(logits)))
    stack = Stack({Site.FINAL_RESIDUAL: logits}, [None], [positions], [(0, *tokens)], ())
    (found,) = token_numbers(stack, View(logits.shape[-1]))  # type: ignore[arg-type]
    return TokenNumbers(found[:, 0], found[:, 1], found[:, 2])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [2, 384, 152_064])
def test_uniform_predictions_have_no_certainty(mode: Any, size: int) -> None:
    found = numbers(torch.full((3, size), 5.0), (0, 1, 1))
    assert found.certainty(mode, size).abs().max() < 2e-6 * log(size)
    assert found.chosen.tolist() == [pytest.approx(-log(size), rel=1e-6)] * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_modes_equal_their_definitions(dtype: torch.dtype) -> None:
    logits = (torch.randn(5, 1000, generator=torch.Generator().manual_seed(1)) * 4).to(dtype)
    found = numbers(logits, (1, 2, 3, 4, 5))
    p = logits.double().softmax(-1)
    expected = {
        "kl_u_p": -(1000 * p).log().mean(-1),
        "kl_p_u": (p * (1000 * p).log()).sum(-1),
        "as_printed": (p * (1000 * p).log()).sum(-1) / 1000,
    }
    for mode in MODES:
        assert torch.allclose(found.certainty(mode, 1000), expected[mode], rtol=1e-5)  # type: ignore[arg-type]
    assert torch.allclose(found.chosen.double(), p[range(5), [1, 2, 3, 4, 5]].log(), rtol=1e-5)


@pytest.mark.parametrize("size", [3, 384])
def test_certainty_is_never_below_zero(size: int) -> None:
    logits = torch.randn(200, size, generator=torch.Generator().manual_seed(2))
    found = numbers(logits, (0,) * 200)
    for mode in MODES:
        assert found.certainty(mode, size).min() >= 0  # type: ignore[arg-type]


def test_a_sure_prediction_is_as_certain_as_can_be() -> None:
    logits = torch.full((1, 384), -100.0)
    logits[0, 7] = 100.0
    found = numbers(logits, (7,))
    assert float(found.certainty("kl_p_u", 384)) == pytest.approx(log(384))
    assert float(found.chosen) == pytest.approx(0.0)


@pytest.mark.parametrize(("size", "positions"), [(152_064, 441), (10**6, 128)])
def test_a_gpu_takes_more_positions_at_once(size: int, positions: int) -> None:
    assert positions_at_once(size, torch.device("cuda")) == positions
    assert positions_at_once(size, torch.device("cpu")) == 24 * 2**20 // (4 * size)


def test_rows_of_a_batch_keep_their_own_tokens_and_blocks_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(9, 50, generator=torch.Generator().manual_seed(3))
    monkeypatch.setattr(certainty, "BLOCK_BYTES", 4 * 50 * 2)
    positions = [(0, 1, 2), (3, 5), (0, 1, 2, 4)]
    tokens = [(9, 1, 2, 3), (9, 9, 9, 9, 4, 9, 5), (9, 6, 7, 8, 9, 9)]
    view = View(50)
    stack = Stack({Site.FINAL_RESIDUAL: logits}, [None] * 3, positions, tokens, ())
    found = token_numbers(stack, view)  # type: ignore[arg-type]
    assert view.most == 2
    logs = logits.log_softmax(-1)
    following = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert torch.allclose(torch.cat(list(found))[:, 0], logs[range(9), following])
    assert [len(row) for row in found] == [3, 2, 4]
