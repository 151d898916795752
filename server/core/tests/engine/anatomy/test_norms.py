"""Norms are told apart by numbers alone, and strangers are refused."""

import pytest
import torch
from torch import Tensor, nn
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma2.modeling_gemma2 import Gemma2RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from lensd_server.engine.anatomy.norms import derive_norm

D_MODEL = 32


class FixedLayerNorm(nn.Module):
    """OLMo's: nothing learned, the epsilon in the code."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (x.shape[-1],), eps=1e-5)


class MaxNorm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().amax(-1, keepdim=True)


def disturbed(module: nn.Module) -> nn.Module:
    with torch.no_grad():
        for seed, parameter in enumerate(module.parameters()):
            generator = torch.Generator().manual_seed(seed)
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return module


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(6, D_MODEL, generator=torch.Generator().manual_seed(9)) * 3 + 0.5


@pytest.mark.parametrize(
    ("module", "centre", "gain", "has_bias", "eps"),
    [
        (nn.LayerNorm(D_MODEL, eps=1e-3), True, "w", True, 1e-3),
        (nn.LayerNorm(D_MODEL, bias=False), True, "w", False, 1e-5),
        (nn.LayerNorm(D_MODEL, elementwise_affine=False), True, "none", False, 1e-5),
        (LlamaRMSNorm(D_MODEL, eps=1e-6), False, "w", False, 1e-6),
        (nn.RMSNorm(D_MODEL, eps=1e-5), False, "w", False, 1e-5),
        (Gemma2RMSNorm(D_MODEL), False, "1+w", False, 1e-6),
        (CohereLayerNorm(D_MODEL, eps=1e-5), True, "w", False, 1e-5),
        (FixedLayerNorm(), True, "none", False, 1e-5),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_the_form_of_a_norm_is_found(module, centre, gain, has_bias, eps, inputs, close):
    norm = derive_norm(disturbed(module), inputs)
    assert norm is not None
    found = norm.anatomy
    assert (found.centre, found.gain, found.has_bias, found.eps) == (centre, gain, has_bias, eps)
    with torch.no_grad():
        close(norm(inputs), module(inputs))


def test_the_form_is_found_in_bfloat16(inputs):
    norm = derive_norm(disturbed(Gemma2RMSNorm(D_MODEL)).bfloat16(), inputs.bfloat16())
    assert norm is not None
    assert (norm.anatomy.gain, norm.anatomy.centre) == ("1+w", False)
    assert norm.gain is not None
    assert norm.gain.dtype == torch.float32


def test_the_frozen_statistic_keeps_the_width_of_its_input(inputs):
    norm = derive_norm(disturbed(LlamaRMSNorm(D_MODEL)), inputs)
    assert norm is not None
    assert norm.inverse_std(inputs.bfloat16()).dtype == torch.float32
    assert norm.inverse_std(inputs.double()).dtype == torch.float64
    assert norm.inverse_std(inputs).shape == (6, 1)


@pytest.mark.parametrize("module", [MaxNorm(), nn.Identity(), nn.Tanh()])
def test_what_is_no_known_norm_is_refused(module, inputs):
    assert derive_norm(module, inputs) is None


def test_a_norm_of_another_width_is_refused(inputs):
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(D_MODEL // 2))
            self.eps = 1e-5

        def forward(self, x: Tensor) -> Tensor:
            halves = x.unflatten(-1, (2, -1))
            return (halves / halves.norm(dim=-1, keepdim=True) * self.weight).flatten(-2)

    assert derive_norm(Halves(), inputs) is None
