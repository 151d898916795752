"""Norms as formulas, accepted only after reproducing the model's own module.

The architectures differ in three ways: whether the mean is subtracted, whether the gain is ``w``,
``1 + w`` or absent, and the epsilon. All combinations are tried; the numbers choose.
"""

import copy
from dataclasses import dataclass
from itertools import product
from typing import cast

import torch
from torch import Tensor, nn

from lensd_api import NormAnatomy

_EPS_NAMES = ("eps", "variance_epsilon", "epsilon")
#: Norms without an attribute for it have it written into their code.
_EPS_USUAL = (1e-5, 1e-6)
#: The module is run in fp32 whatever the model's dtype, so rounding leaves about 1e-6.
_TOLERANCE = 1e-5


@dataclass(frozen=True, slots=True)
class VerifiedNorm:
    """``gain * (x - centre * mean(x)) * inverse_std(x) + bias``; gain and bias in fp32."""

    centre: bool
    gain: Tensor | None
    bias: Tensor | None
    anatomy: NormAnatomy

    def inverse_std(self, x: Tensor) -> Tensor:
        """[..., d_model] -> [..., 1], in fp32 or wider."""
        wide = self._centred(x)
        return torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.anatomy.eps)

    def __call__(self, x: Tensor) -> Tensor:
        """The norm of ``x``, in fp32 or wider."""
        y = self._centred(x) * self.inverse_std(x)
        if self.gain is not None:
            y = y * self.gain
        return y if self.bias is None else y + self.bias

    def _centred(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        return wide - wide.mean(-1, keepdim=True) if self.centre else wide


def derive_norm(module: nn.Module, x: Tensor) -> VerifiedNorm | None:
    """The formula of ``module``, verified on inputs ``x`` [n, d_model]; ``None`` when none fits."""
    reference = copy.deepcopy(module).float()
    # Scaled down, the same inputs also show the epsilon.
    inputs = torch.cat([x.float(), 1e-3 * x.float()])
    with torch.no_grad():
        expected = reference(inputs)
        candidates = [norm for norm in _candidates(module) if not _misfit(norm, x)]
        errors = [_error(norm(inputs), expected) for norm in candidates]
    if not errors:
        return None
    best = min(range(len(errors)), key=errors.__getitem__)
    if not errors[best] <= _TOLERANCE:
        return None
    chosen = candidates[best]
    anatomy = NormAnatomy(
        centre=chosen.centre,
        gain=chosen.anatomy.gain,
        has_bias=chosen.bias is not None,
        eps=chosen.anatomy.eps,
        max_error=errors[best],
    )
    return VerifiedNorm(chosen.centre, chosen.gain, chosen.bias, anatomy)


def _candidates(module: nn.Module) -> list[VerifiedNorm]:
    weight = getattr(module, "weight", None)
    bias = getattr(module, "bias", None)
    gains: dict[str, Tensor | None] = {"none": None}
    if isinstance(weight, Tensor):
        wide = weight.detach().float()
        gains = {"w": wide, "1+w": 1.0 + wide}
    shift = bias.detach().float() if isinstance(bias, Tensor) else None
    stated = [value for name in _EPS_NAMES if isinstance(value := getattr(module, name, None), float)]
    return [
        VerifiedNorm(
            centre, gains[gain], shift, NormAnatomy(centre, gain, shift is not None, eps, float("inf"))
        )
        for centre, gain, eps in product((False, True), gains, stated or _EPS_USUAL)
    ]


def _misfit(norm: VerifiedNorm, x: Tensor) -> bool:
    width = x.shape[-1]
    return any(t is not None and t.shape != (width,) for t in (norm.gain, norm.bias))


def _error(found: Tensor, expected: Tensor) -> float:
    """Largest deviation relative to the largest output; NaN becomes infinite."""
    error = cast("float", ((found - expected).abs().max() / expected.abs().max()).item())
    return error if error == error else float("inf")
