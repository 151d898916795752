"""Rotary embeddings that depend on what else stands in the batch are not served beyond where they do."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from lensd_server.engine.anatomy.inspect import inspect_model
from lensd_server.engine.anatomy.skeleton import find_skeleton

ORIGINAL = 32


def built(**how: Any) -> Any:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        initializer_range=0.2,
        **how,
    )
    return AutoModelForCausalLM.from_config(config).eval()


def longrope(**how: Any) -> Any:
    factors = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, **factors, **how}
    return built(rope_parameters=rope)


@torch.inference_mode()
def test_why_a_row_beside_a_longer_one_would_come_out_otherwise() -> None:
    """What is guarded against is real: without it the limit could go."""
    model = longrope(original_max_position_embeddings=ORIGINAL)
    short, long = torch.arange(5, 25), torch.arange(3, 83)
    padded = torch.stack([torch.nn.functional.pad(short, (0, 60)), long])
    alone, beside = model(short[None]).logits[0], model(padded).logits[0, :20]
    assert float((alone - beside).abs().max()) > 0.01 * float(alone.abs().max())


@pytest.mark.parametrize(("model", "expected"), [("longrope", ORIGINAL), ("plain", 128)])
def test_a_context_ends_where_rows_would_change_each_other(model: str, expected: int) -> None:
    module = built() if model == "plain" else longrope(original_max_position_embeddings=ORIGINAL)
    assert find_skeleton(module).context_length == expected
    assert inspect_model(module).anatomy.context_length == expected
