"""What is captured adds up, on other tokens than those the inspection looked at, in fp64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lensd_api import Norm, Site, Unit, Write

DENSE = {Unit.BLOCK, Unit.COMPONENT, Unit.HEAD, Unit.NEURON}
ROUTED = {Unit.BLOCK, Unit.COMPONENT, Unit.HEAD, Unit.EXPERT}
MIXTURES = {"mixtral", "olmoe", "qwen3_moe"}
#: Their attention does not go through transformers' AttentionInterface.
WITHOUT_SOURCE = {"bloom", "falcon", "falcon_new", "gptj"}
WITH_POS_EMBED = {"gpt2", "opt"}
#: Longer than the sliding windows of the tiny models.
LENGTH = 14

Close = Callable[..., None]


def normed(norm: Norm, x: Tensor) -> Tensor:
    """The published formula, in fp64."""
    centred = x - x.mean(-1, keepdim=True) if norm.centre else x
    y = centred * norm.inverse_std(x)
    y = y if norm.gain is None else y * norm.gain
    return y if norm.bias is None else y + norm.bias


def written(write: Write, inputs: Tensor) -> Tensor:
    """``multiplier * post_norm(inputs @ weight + bias)`` in fp64."""
    y = inputs.double() @ write.weight.double()
    y = y if write.bias is None else y + write.bias
    return write.multiplier * (y if write.post_norm is None else normed(write.post_norm, y))


def test_each_architecture_offers_the_units_it_has(lens):
    expected = ROUTED if lens.name in MIXTURES else DENSE
    expected = expected | ({Unit.SOURCE} if lens.name not in WITHOUT_SOURCE else set())
    for layer in lens.model.anatomy.layers:
        assert layer.units == expected
        assert set(layer.refused) == set(Unit) - expected
        assert all(error <= 1e-5 for error in layer.max_error.values())
        assert set(layer.max_error) == expected


def test_block_outputs_are_the_next_inputs_and_the_last_is_the_final_residual(lens):
    kept = lens.capture(lens.tokens(LENGTH), Site.BLOCK_IN, Site.BLOCK_OUT, Site.FINAL_RESIDUAL)
    assert torch.equal(kept[Site.BLOCK_OUT][:, :-1], kept[Site.BLOCK_IN][:, 1:])
    assert torch.equal(kept[Site.BLOCK_OUT][:, -1], kept[Site.FINAL_RESIDUAL])


def test_block_inputs_are_the_hidden_states_transformers_reports(lens):
    tokens = lens.tokens(LENGTH)
    with torch.inference_mode():
        plain = lens.model.module(torch.tensor([tokens]), use_cache=False, output_hidden_states=True)
    kept = lens.capture(tokens, Site.BLOCK_IN)[Site.BLOCK_IN]
    # The last of hidden_states is behind the final norm already.
    assert torch.equal(kept, torch.stack(plain.hidden_states[:-1], dim=2)[0])


def test_attention_and_mlp_writes_add_up_to_the_block(lens, close: Close):
    kept = lens.capture(lens.tokens(LENGTH), Site.BLOCK_IN, Site.BLOCK_OUT, Site.ATTN_WRITE, Site.MLP_WRITE)
    kept = {site: value.double() for site, value in kept.items()}
    close(kept[Site.BLOCK_IN] + kept[Site.ATTN_WRITE] + kept[Site.MLP_WRITE], kept[Site.BLOCK_OUT])


def test_embeddings_are_the_first_blocks_input(lens, close: Close):
    kept = lens.capture(lens.tokens(LENGTH), Site.EMBED, Site.POS_EMBED, Site.BLOCK_IN)
    close(kept[Site.EMBED] + kept[Site.POS_EMBED], kept[Site.BLOCK_IN][:, 0])
    assert lens.model.anatomy.has_pos_embed == (lens.name in WITH_POS_EMBED)
    assert bool(kept[Site.POS_EMBED].any()) == (lens.name in WITH_POS_EMBED)


def test_the_token_embedding_does_not_depend_on_the_position(lens):
    token = lens.tokens(1)[0]
    kept = lens.capture([token] * 4, Site.EMBED)[Site.EMBED]
    assert torch.equal(kept, kept[:1].expand_as(kept))


def test_heads_through_the_output_projection_are_the_attention_write(lens, close: Close):
    kept = lens.capture(lens.tokens(LENGTH), Site.HEADS, Site.ATTN_WRITE)
    anatomy = lens.model.anatomy
    assert kept[Site.HEADS].shape == (LENGTH, anatomy.n_layers, anatomy.n_heads, anatomy.head_dim)
    for layer in range(anatomy.n_layers):
        write = written(lens.model.view.attention_write(layer), kept[Site.HEADS][:, layer].flatten(1))
        close(write, kept[Site.ATTN_WRITE][:, layer])


def test_neurons_through_the_down_projection_are_the_mlp_write(lens, close: Close):
    if lens.name in MIXTURES:
        pytest.skip("its MLP is made of routed experts")
    kept = lens.capture(lens.tokens(LENGTH), Site.NEURONS, Site.MLP_WRITE)
    assert kept[Site.NEURONS].shape[-1] == lens.model.anatomy.d_mlp
    for layer in range(lens.model.anatomy.n_layers):
        write = written(lens.model.view.mlp_write(layer), kept[Site.NEURONS][:, layer])
        close(write, kept[Site.MLP_WRITE][:, layer])


@pytest.mark.parametrize("name", sorted(MIXTURES))
def test_each_slot_holds_what_its_expert_writes(name, lens_of, close: Close):
    lens = lens_of(name)
    sites = (Site.EXPERT_WRITES, Site.EXPERT_IDS, Site.MLP_WRITE)
    kept = lens.capture(lens.tokens(LENGTH), *sites)
    close(kept[Site.EXPERT_WRITES].sum(2), kept[Site.MLP_WRITE])
    for layer in range(lens.model.anatomy.n_layers):
        block = lens.model.structure.skeleton.blocks[layer]
        found = oracle_expert_writes(lens, block, lens.tokens(LENGTH))
        for position in range(LENGTH):
            for slot, expert in enumerate(kept[Site.EXPERT_IDS][position, layer].tolist()):
                close(kept[Site.EXPERT_WRITES][position, layer, slot], found[position, expert])


def oracle_expert_writes(lens, block: torch.nn.Module, tokens: tuple[int, ...]) -> Tensor:
    """[pos, expert, d_model] in fp64, by the textbook formula, from the router's input and weights."""
    seen: list[Tensor] = []
    handle = block.mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    with torch.inference_mode():
        lens.model.module(torch.tensor([tokens]), use_cache=False)
        handle.remove()
        x = seen[0].reshape(-1, seen[0].shape[-1])
        _, weights, ids = block.mlp.gate(x)
    routing = torch.zeros(x.shape[0], block.mlp.experts.gate_up_proj.shape[0], dtype=torch.float64)
    routing.scatter_(1, ids, weights.double())
    gate, up = torch.einsum("pd,emd->pem", x.double(), block.mlp.experts.gate_up_proj.double()).chunk(2, -1)
    hidden = torch.nn.functional.silu(gate) * up
    out = torch.einsum("pem,edm->ped", hidden, block.mlp.experts.down_proj.double())
    return out * routing[:, :, None]


def test_attention_weights_times_values_are_the_heads(lens, close: Close):
    if lens.name in WITHOUT_SOURCE:
        pytest.skip("offers no source unit")
    kept = lens.capture(lens.tokens(LENGTH), Site.HEADS, Site.ATTENTION, Site.VALUES)
    weights, values = kept[Site.ATTENTION].double(), kept[Site.VALUES].double()
    close(torch.einsum("plhs,slhe->plhe", weights, values), kept[Site.HEADS])
    close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    # No position looks ahead.
    assert not weights.permute(1, 2, 0, 3).triu(diagonal=1).any()
