"""What does not hold is refused with a reason; what still holds is still offered."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from lensd_api import LoadFailed, RequirementNotMet, Site, Unit
from lensd_server.engine.anatomy.capture import GatherGroup, check_sites, run_batch
from lensd_server.engine.anatomy.inspect import InspectedModel, inspect_model
from lensd_server.tiny_models import TINY

FULL = {Unit.BLOCK, Unit.COMPONENT, Unit.HEAD, Unit.NEURON, Unit.SOURCE}
TOKENS = torch.arange(3, 12)[None]
LAST = ((TOKENS.shape[1] - 1,),)


def broken(name: str, where: str, change: Callable[[Tensor], Tensor]) -> InspectedModel:
    """A tiny model in which the output of the module at ``where`` is changed."""
    module = TINY[name]()
    module.get_submodule(where).register_forward_hook(lambda _, args, output: change(output))
    return inspect_model(module)


def capture(model: InspectedModel, layers: tuple[int, ...], *sites: Site) -> dict[Site, Tensor]:
    group = GatherGroup(frozenset(sites), layers, (0,), LAST)
    return run_batch(model, TOKENS, torch.ones_like(TOKENS), None, (TOKENS.shape[1],), [group])[0]


def test_a_block_that_adds_something_else_offers_its_delta_only():
    model = broken("llama", "model.layers.1", lambda x: x + 0.01)
    first, second, third = model.anatomy.layers
    assert first.units == third.units == FULL
    assert second.units == {Unit.BLOCK}
    for unit in (Unit.COMPONENT, Unit.HEAD, Unit.NEURON, Unit.EXPERT, Unit.SOURCE):
        assert second.refused[unit]
    assert "miss the block's output by" in second.refused[Unit.COMPONENT]
    assert model.anatomy.units == {Unit.BLOCK}
    assert model.anatomy.layers_offering(Unit.HEAD) == (0, 2)


def test_the_blocks_of_a_broken_split_still_telescope():
    model = broken("llama", "model.layers.1", lambda x: x + 0.01)
    kept = capture(model, (0, 1, 2), Site.EMBED, Site.BLOCK_IN, Site.BLOCK_OUT, Site.FINAL_RESIDUAL)
    deltas = (kept[Site.BLOCK_OUT] - kept[Site.BLOCK_IN]).sum(1)
    torch.testing.assert_close(kept[Site.EMBED] + deltas, kept[Site.FINAL_RESIDUAL])


def test_a_refused_site_is_not_captured_where_it_is_refused_and_is_elsewhere():
    model = broken("llama", "model.layers.1", lambda x: x + 0.01)
    with pytest.raises(RequirementNotMet, match="site 'heads' needs unit 'head', which layer 1") as caught:
        capture(model, (0, 1, 2), Site.HEADS)
    assert "units offered by every layer: block" in caught.value.message
    assert caught.value.metadata == {"site": "heads", "unit": "head", "layer": "1"}
    assert capture(model, (0, 2), Site.HEADS)[Site.HEADS].shape == (1, 2, 4, 16)


def test_the_smallest_stray_write_is_seen_beside_a_large_stream():
    def stray(x: Tensor) -> Tensor:
        changed = x.clone()
        changed[..., 7] += 1e-3 * changed[..., 7].abs().clamp_min(0.1)
        return changed

    assert broken("llama", "model.layers.0", stray).anatomy.layers[0].units == {Unit.BLOCK}


def test_a_projection_that_is_not_affine_in_its_input_has_no_heads():
    layer = broken("llama", "model.layers.0.self_attn.o_proj", lambda x: 1.01 * x).anatomy.layers[0]
    assert layer.units == {Unit.BLOCK, Unit.COMPONENT, Unit.NEURON}
    assert "heads through the output projection is off by" in layer.refused[Unit.HEAD]
    assert layer.refused[Unit.SOURCE] == "heads are not offered"


def test_a_down_projection_that_is_not_affine_in_its_input_has_no_neurons():
    layer = broken("gpt2", "transformer.h.2.mlp.c_proj", lambda x: x + 0.1 * x.square()).anatomy.layers[2]
    assert layer.units == FULL - {Unit.NEURON}
    assert "off by" in layer.refused[Unit.NEURON]


def test_experts_that_do_not_sum_to_the_write_are_refused():
    layer = broken("mixtral", "model.layers.0.mlp.experts", lambda x: 1.01 * x).anatomy.layers[0]
    assert layer.units == {Unit.BLOCK, Unit.COMPONENT, Unit.HEAD, Unit.SOURCE}
    assert "routed experts' outputs is off by" in layer.refused[Unit.EXPERT]


def test_heads_that_are_not_weighted_values_have_no_sources():
    module = TINY["llama"]()
    gated = module.get_submodule("model.layers.1.self_attn.o_proj")
    gated.register_forward_pre_hook(lambda _, args: (1.1 * args[0],))
    layer = inspect_model(module).anatomy.layers[1]
    assert layer.units == FULL - {Unit.SOURCE}
    assert "attention weights times values" in layer.refused[Unit.SOURCE]


def test_a_stream_changed_between_blocks_refuses_the_block_before():
    module = TINY["llama"]()
    second = module.get_submodule("model.layers.1")
    second.register_forward_pre_hook(lambda _, args: (1.1 * args[0], *args[1:]))
    layers = inspect_model(module).anatomy.layers
    assert layers[0].units == frozenset()
    assert "the next one's input" in layers[0].refused[Unit.BLOCK]
    assert layers[1].units == layers[2].units == FULL


def test_an_unknown_final_norm_refuses_every_unit_and_says_so():
    class Squash(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x)

    module = TINY["llama"]()
    module.get_submodule("model").norm = Squash()
    model = inspect_model(module)
    assert model.anatomy.final_norm is None
    assert all(not layer.units for layer in model.anatomy.layers)
    assert "no norm of a known form" in model.anatomy.layers[0].refused[Unit.BLOCK]
    with pytest.raises(RequirementNotMet, match="no norm of a known form"):
        model.view.logits(torch.zeros(1, 64))
    # What needs no understanding is still captured.
    assert torch.isfinite(capture(model, (), Site.LOGITS)[Site.LOGITS]).all()


def test_unknown_logits_refuse_every_unit_and_say_so():
    def square(_: nn.Module, args: object, output: CausalLMOutputWithPast) -> None:
        assert output.logits is not None
        output.logits = output.logits.square()

    module = TINY["llama"]()
    module.register_forward_hook(square)
    model = inspect_model(module)
    assert all("no known scaling" in layer.refused[Unit.HEAD] for layer in model.anatomy.layers)


def test_a_model_whose_padding_is_seen_by_earlier_positions_is_not_served():
    with pytest.raises(LoadFailed, match="a padded row gives other logits") as caught:
        broken("llama", "model.layers.0", lambda x: x + x.mean(1, keepdim=True))
    assert caught.value.reason == "UNSUPPORTED_ARCHITECTURE"


def test_a_model_that_predicts_tokens_it_cannot_read_is_not_served():
    module = TINY["llama"]()
    module.set_output_embeddings(nn.Linear(64, 400, bias=False))
    with pytest.raises(LoadFailed, match="head predicts 400 tokens, but its embedding holds 384") as caught:
        inspect_model(module)
    assert caught.value.reason == "UNSUPPORTED_ARCHITECTURE"


def test_a_model_without_a_list_of_blocks_is_not_served():
    module = TINY["llama"]()
    module.config.num_hidden_layers = 5
    with pytest.raises(
        LoadFailed, match="LlamaForCausalLM cannot be served: its decoder holds no list of 5 blocks"
    ):
        inspect_model(module)


def test_the_view_has_no_weights_for_refused_units(lens_of):
    view = broken("llama", "model.layers.1", lambda x: x + 0.01).view
    with pytest.raises(RequirementNotMet, match="layer 1 has no unit 'head'"):
        view.attention_write(1)
    with pytest.raises(RequirementNotMet, match="layer 1 has no unit 'neuron'"):
        view.mlp_write(1)
    with pytest.raises(RequirementNotMet, match="there is no layer 3: the model has 3"):
        view.attention_write(3)
    with pytest.raises(RequirementNotMet, match="the MLP is made of routed experts"):
        lens_of("mixtral").model.view.mlp_write(0)


def test_layers_that_do_not_exist_are_refused(lens_of):
    with pytest.raises(RequirementNotMet, match="there is no layer 3: the model has 3 layers"):
        check_sites(lens_of("llama").model.anatomy, {Site.BLOCK_IN}, (0, 3))


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "granite", "qwen3_moe", "falcon", "cohere"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shorter_types_keep_every_unit(name, dtype, lens_of):
    anatomy = inspect_model(TINY[name]().to(dtype)).anatomy
    expected = lens_of(name).model.anatomy
    assert [layer.units for layer in anatomy.layers] == [layer.units for layer in expected.layers]
    assert anatomy.final_norm.gain == expected.final_norm.gain
    assert anatomy.final_norm.centre == expected.final_norm.centre
    assert (anatomy.logit_scale, anatomy.logit_softcap) == (expected.logit_scale, expected.logit_softcap)


def test_a_stray_write_is_seen_in_bfloat16_too():
    module = TINY["llama"]().to(torch.bfloat16)
    module.get_submodule("model.layers.1").register_forward_hook(lambda _, args, output: output + 0.3)
    layers = inspect_model(module).anatomy.layers
    assert layers[0].units == layers[2].units == FULL
    assert layers[1].units == {Unit.BLOCK}
