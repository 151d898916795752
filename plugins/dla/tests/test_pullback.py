"""The algebra, on norms and writes made by hand: pulling back equals pushing forward."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor

from lensd_dla.pullback import freeze_read, freeze_write

D, N_IN, POS = 6, 8, 3


@dataclass(frozen=True)
class HandNorm:
    """gain * (x - centre * mean x) * s + bias."""

    centre: bool
    gain: Tensor | None
    bias: Tensor | None

    def inverse_std(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if self.centre else x
        return (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt()

    def affine(self, x: Tensor, scale: Tensor) -> Tensor:
        """The norm with its statistics frozen, bias left out."""
        x = (x - x.mean(-1, keepdim=True) if self.centre else x) * scale
        return x if self.gain is None else x * self.gain


@dataclass(frozen=True)
class HandWrite:
    weight: Tensor
    bias: Tensor | None
    multiplier: float
    post_norm: HandNorm | None


def numbers(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def norm(centre: bool, gain: bool, bias: bool, seed: int = 0) -> HandNorm:
    return HandNorm(
        centre, numbers(D, seed=seed) if gain else None, numbers(D, seed=seed + 1) if bias else None
    )


def view(final: HandNorm | None) -> Any:
    return SimpleNamespace(final_norm=final)


NORMS = [norm(c, g, b) for c in (False, True) for g in (False, True) for b in (False, True)]
X, DIRECTION, C = numbers(POS, D, seed=10), numbers(POS, D, seed=11), numbers(POS, D, seed=12)


@pytest.mark.parametrize("final", NORMS)
def test_a_contribution_is_the_direction_on_the_pushed_write(final: HandNorm) -> None:
    read = freeze_read(X, DIRECTION, view(final))
    pushed = final.affine(C, final.inverse_std(X))
    assert torch.allclose((read.pulled * C).sum(-1), (DIRECTION * pushed).sum(-1))


@pytest.mark.parametrize("final", NORMS)
def test_stream_and_constant_make_the_whole_read_out(final: HandNorm) -> None:
    read = freeze_read(X, DIRECTION, view(final))
    whole = final.affine(X, final.inverse_std(X))
    whole = whole if final.bias is None else whole + final.bias
    constant = 0.0 if read.constant is None else read.constant
    assert torch.allclose((read.pulled * X).sum(-1) + constant, (DIRECTION * whole).sum(-1))


@pytest.mark.parametrize("final", NORMS)
def test_an_effect_is_the_read_out_with_and_without(final: HandNorm) -> None:
    read = freeze_read(X, DIRECTION, view(final))
    without = X - C
    gone = final.affine(X, final.inverse_std(X)) - final.affine(without, final.inverse_std(without))
    assert torch.allclose(read.effects(C[:, None])[:, 0], (DIRECTION * gone).sum(-1))


def test_without_a_norm_contribution_and_effect_are_the_same() -> None:
    read = freeze_read(X, DIRECTION, view(None))
    assert read.constant is None
    assert torch.allclose(read.effects(C[:, None])[:, 0], (read.pulled * C).sum(-1))


@pytest.mark.parametrize("post", [None, *NORMS])
@pytest.mark.parametrize("has_bias", [False, True])
def test_terms_of_a_write_add_up_through_its_post_norm(post: HandNorm | None, has_bias: bool) -> None:
    write = HandWrite(numbers(N_IN, D, seed=20), numbers(D, seed=21) if has_bias else None, 0.3, post)
    inputs = numbers(POS, N_IN, seed=22)
    raw = inputs @ write.weight
    raw = raw if write.bias is None else raw + write.bias
    written = raw
    if post is not None:
        written = post.affine(raw, post.inverse_std(raw))
        written = written if post.bias is None else written + post.bias
    written = 0.3 * written
    read = freeze_read(X, DIRECTION, view(NORMS[-1]))
    frozen = freeze_write(read, write, inputs)
    terms = (frozen.pulled @ write.weight.T) * inputs
    total = terms.sum(-1) + (0.0 if frozen.bias is None else frozen.bias)
    assert torch.allclose(total, (read.pulled * written).sum(-1))
    pushed = frozen.written((inputs @ write.weight)[:, None])[:, 0] + frozen.bias_written()[:, 0]
    assert torch.allclose(pushed, written)
    first = frozen.written((inputs[:, :1] * write.weight[:1])[:, None])[:, 0]
    assert torch.allclose(terms[:, 0], (read.pulled * first).sum(-1))


def test_rows_can_be_picked_and_repeated() -> None:
    read = freeze_read(X, DIRECTION, view(NORMS[-1]))
    frozen = freeze_write(
        read, HandWrite(numbers(N_IN, D, seed=1), None, 1.0, NORMS[3]), numbers(POS, N_IN, seed=2)
    )
    picked = torch.tensor([2, 0, 2])
    assert torch.equal(read.at(picked).pulled, read.pulled[picked])
    assert torch.equal(frozen.at(picked).pulled, frozen.pulled[picked])


def test_wrong_shapes_are_caught_in_tests() -> None:
    read = freeze_read(X, DIRECTION, view(None))
    with pytest.raises(jaxtyping.TypeCheckError):
        read.effects(C)
