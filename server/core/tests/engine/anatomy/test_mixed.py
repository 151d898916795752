"""Models whose layers differ, and parts that are not among the usual ones."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lensd_api import LoadFailed, RequirementNotMet, Site, Unit
from lensd_server.engine.anatomy.capture import GatherGroup, run_batch
from lensd_server.engine.anatomy.inspect import inspect_model
from lensd_server.tiny_models import TINY

TOKENS = torch.arange(3, 12)[None]


def built(config: Any) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(config).eval()


def small(model_type: str, **arguments: Any) -> Any:
    usual = {
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    return CONFIG_MAPPING[model_type](**{**usual, **arguments})


def test_dense_layers_among_routed_ones_offer_neurons(close):
    config = TINY["qwen3_moe"]().config
    config.mlp_only_layers = [1]
    model = inspect_model(built(config))
    assert model.anatomy.layers_offering(Unit.EXPERT) == (0, 2)
    assert model.anatomy.layers_offering(Unit.NEURON) == (1,)
    assert model.anatomy.d_mlp == 96
    group = GatherGroup(frozenset({Site.EXPERT_WRITES, Site.MLP_WRITE}), (0, 2), (0,), ((2, 8),))
    kept = run_batch(model, TOKENS, torch.ones_like(TOKENS), None, (9,), [group])[0]
    close(kept[Site.EXPERT_WRITES].sum(2), kept[Site.MLP_WRITE])
    everywhere = GatherGroup(frozenset({Site.EXPERT_IDS}), (0, 1, 2), (0,), ((8,),))
    with pytest.raises(RequirementNotMet, match="layer 1 does not offer: the MLP is dense"):
        run_batch(model, TOKENS, torch.ones_like(TOKENS), None, (9,), [everywhere])


def test_routed_experts_beside_a_shared_one_are_not_the_whole_write():
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    model = inspect_model(built(small("qwen2_moe", **experts, shared_expert_intermediate_size=16)))
    for layer in model.anatomy.layers:
        assert layer.units == {Unit.BLOCK, Unit.COMPONENT, Unit.HEAD, Unit.SOURCE}
        assert "routed experts' outputs is off" in layer.refused[Unit.EXPERT]


def test_attention_sinks_refuse_sources_rather_than_lose_weight():
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    model = inspect_model(built(small("gpt_oss", head_dim=8, **experts)))
    for layer in model.anatomy.layers:
        assert layer.units == {Unit.BLOCK, Unit.COMPONENT, Unit.HEAD, Unit.EXPERT}
        assert "attention weights times values" in layer.refused[Unit.SOURCE]


def test_attention_that_is_linear_has_no_heads():
    config = small(
        "qwen3_next",
        head_dim=8,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_value_heads=4,
        linear_num_key_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        layer_types=["linear_attention", "linear_attention", "full_attention"],
    )
    model = inspect_model(built(config))
    assert model.anatomy.layers_offering(Unit.HEAD) == (2,)
    assert "linear" in model.anatomy.layers[0].refused[Unit.HEAD]


def test_a_model_without_attention_heads_is_not_served():
    config = CONFIG_MAPPING["mamba"](vocab_size=64, hidden_size=32, num_hidden_layers=2)
    with pytest.raises(LoadFailed, match="its configuration states no num_attention_heads"):
        inspect_model(built(config))


def test_a_projection_before_the_output_head_refuses_every_unit():
    config = small("opt", word_embed_proj_dim=16, ffn_dim=48, do_layer_norm_before=False)
    model = inspect_model(built(config))
    assert model.anatomy.units == frozenset()
    assert "between the last block and the output head" in model.anatomy.layers[0].refused[Unit.BLOCK]
