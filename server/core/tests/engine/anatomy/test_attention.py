"""Recomputed attention weights, against those of transformers' eager attention."""

import pytest
import torch

from lensd_api import Site
from lensd_server.engine.anatomy import attention
from lensd_server.engine.anatomy.attention import attention_implementation, recording
from lensd_server.engine.anatomy.capture import GatherGroup
from lensd_server.engine.anatomy.inspect import inspect_model
from lensd_server.tiny_models import TINY

#: Windows, soft-caps, grouped queries, learned positions, pre-scaled queries.
NAMES = ("gpt2", "llama", "mistral", "qwen3", "gemma2", "gemma3", "gpt_neox", "phi3", "opt", "granite")
LENGTH = 14


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_those_of_eager_attention(name, lens_of, close):
    lens = lens_of(name)
    tokens = lens.tokens(LENGTH)
    eager = TINY[name]()
    eager.set_attn_implementation("eager")
    with torch.inference_mode():
        expected = eager(torch.tensor([tokens]), use_cache=False, output_attentions=True).attentions
    found = lens.capture(tokens, Site.ATTENTION)[Site.ATTENTION]  # [pos, layer, head, src]
    close(found, torch.stack([a[0] for a in expected]).permute(2, 0, 1, 3))


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_a_masked_row_skip_what_is_masked(name, lens_of, close):
    lens = lens_of(name)
    tokens, seen = lens.tokens(6), [1, 1, 0, 0, 1, 1]
    group = lens.group(Site.ATTENTION, Site.VALUES, Site.HEADS, rows=(6,))
    kept = lens.run([tokens], [group], masks=[seen])[0]
    weights = kept[Site.ATTENTION].double()
    assert not weights[4:, :, :, 2:4].any()
    found = torch.einsum("plhs,slhe->plhe", weights, kept[Site.VALUES].double())
    close(found[[0, 1, 4, 5]], kept[Site.HEADS][[0, 1, 4, 5]])


@pytest.mark.parametrize("name", NAMES)
def test_where_no_kernel_shares_keys_each_head_has_its_own(name, lens_of, close, monkeypatch):
    """As on a GPU in float32."""
    lens = lens_of(name)
    tokens = lens.tokens(LENGTH)
    expected = lens.capture(tokens, Site.HEADS, Site.LOGITS, Site.ATTENTION)
    asked = []
    monkeypatch.setattr(attention, "_lacks_grouped_kernel", lambda query: asked.append(query.shape) or True)
    found = lens.capture(tokens, Site.HEADS, Site.LOGITS, Site.ATTENTION)
    for site, values in expected.items():
        close(found[site], values)
    assert asked or name != "llama"


def test_only_the_asked_query_rows_are_recomputed(lens_of, close):
    lens = lens_of("llama")
    tokens = lens.tokens(LENGTH)
    group = GatherGroup(frozenset({Site.ATTENTION}), (1,), (0,), ((3, 9),))
    found = lens.run([tokens], [group])[0][Site.ATTENTION]
    assert found.shape == (2, 1, 4, LENGTH)
    close(found, lens.capture(tokens, Site.ATTENTION, layers=(1,))[Site.ATTENTION][[3, 9]])


def test_inspection_installs_the_recorder_over_the_models_own_implementation(lens_of):
    assert attention_implementation(lens_of("llama").model.module) == "lensd_sdpa"
    assert attention_implementation(lens_of("gemma2").model.module) == "lensd_eager"
    assert attention_implementation(lens_of("gptj").model.module) == "eager"
    assert attention_implementation(lens_of("falcon").model.module) == "sdpa"


def test_inspecting_a_model_again_finds_the_same(lens_of):
    model = lens_of("qwen2").model
    assert inspect_model(model.module).anatomy.units == model.anatomy.units


def test_nothing_is_recorded_unless_the_context_asks(lens_of):
    lens = lens_of("llama")
    calls = []
    lens.capture(lens.tokens(4), Site.HEADS)
    with recording(lambda module, call: calls.append(module)):
        lens.capture(lens.tokens(4), Site.HEADS)
    lens.capture(lens.tokens(4), Site.HEADS)
    assert len(calls) == lens.model.anatomy.n_layers
