"""From the final residual to logits, against the model and against an fp64 oracle."""

import torch

from lensd_api import Site

SOFTCAPS = {"gemma2": 4.0}
SCALES = {"cohere": 0.25, "granite": 0.25}
CENTRED = {"gpt2", "gpt_neox", "phi", "opt", "bloom", "falcon", "falcon_new", "cohere", "gptj", "stablelm"}
LENGTH = 11


def plain_logits(lens, tokens):
    with torch.inference_mode():
        return lens.model.module(torch.tensor([tokens]), use_cache=False).logits[0]


def test_captured_logits_are_the_models_own(lens, close):
    tokens = lens.tokens(LENGTH)
    kept = lens.capture(tokens, Site.LOGITS)[Site.LOGITS]
    close(kept, plain_logits(lens, tokens), tolerance=1e-6)


def test_raw_logits_become_logits_by_scale_and_softcap(lens, close):
    kept = lens.capture(lens.tokens(LENGTH), Site.LOGITS, Site.RAW_LOGITS)
    anatomy = lens.model.anatomy
    assert anatomy.logit_softcap == SOFTCAPS.get(lens.name)
    assert anatomy.logit_scale == SCALES.get(lens.name, 1.0)
    scaled = kept[Site.RAW_LOGITS].double() * anatomy.logit_scale
    cap = anatomy.logit_softcap
    close(scaled if cap is None else cap * torch.tanh(scaled / cap), kept[Site.LOGITS])
    transformed = cap is not None or anatomy.logit_scale != 1.0
    assert torch.equal(kept[Site.RAW_LOGITS], kept[Site.LOGITS]) != transformed


def test_norm_and_unembedding_of_the_view_give_the_raw_logits(lens, close):
    kept = lens.capture(lens.tokens(LENGTH), Site.FINAL_RESIDUAL, Site.RAW_LOGITS)
    view, norm = lens.model.view, lens.model.view.final_norm
    x = kept[Site.FINAL_RESIDUAL].double()
    centred = x - x.mean(-1, keepdim=True) if norm.centre else x
    y = centred * norm.inverse_std(x) * norm.gain
    y = y if norm.bias is None else y + norm.bias
    raw = y @ view.unembed.double().T
    raw = raw if view.unembed_bias is None else raw + view.unembed_bias
    close(raw, kept[Site.RAW_LOGITS])


def test_the_view_reads_any_residual_as_the_model_would(lens, close):
    kept = lens.capture(lens.tokens(LENGTH), Site.FINAL_RESIDUAL, Site.LOGITS)
    close(lens.model.view.logits(kept[Site.FINAL_RESIDUAL]), kept[Site.LOGITS], tolerance=1e-6)


def test_the_final_norm_is_recognised(lens):
    found = lens.model.anatomy.final_norm
    assert found.centre == (lens.name in CENTRED)
    assert found.gain == ("1+w" if lens.name.startswith("gemma") else "w")
    assert found.max_error <= 1e-6


def test_sizes_are_those_of_the_weights(lens):
    anatomy = lens.model.anatomy
    assert lens.model.view.unembed.shape == (anatomy.vocab_size, anatomy.d_model)
    assert lens.model.view.attention_write(0).weight.shape == (
        anatomy.n_heads * anatomy.head_dim,
        anatomy.d_model,
    )
    assert anatomy.architecture == type(lens.model.module).__name__
    assert anatomy.tied_embeddings == bool(lens.model.module.config.tie_word_embeddings)
