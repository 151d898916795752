"""The tiny models are the same every time and hide nothing in neutral values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lensd_server.tiny_models import CONTEXT_LENGTH, TINY, VOCAB_SIZE, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_name_always_gives_the_same_weights_and_leaves_the_generator_alone(name):
    before = torch.get_rng_state()
    first, second = TINY[name](), TINY[name]()
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", sorted(TINY))
def test_no_gain_or_bias_is_neutral(name):
    for parameter in TINY[name]().parameters():
        if parameter.ndim == 1:
            assert parameter.std() > 0.1


def test_models_and_tokenizer_share_a_vocabulary(lens):
    assert len(TOKENIZER) == VOCAB_SIZE == lens.model.anatomy.vocab_size
    # Bloom has no limit of its own.
    assert lens.model.anatomy.context_length == (2048 if lens.name == "bloom" else CONTEXT_LENGTH)


@given(st.text(max_size=40))
def test_any_text_survives_the_tokenizer(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


def test_known_words_are_single_tokens():
    assert len(TOKENIZER.encode(" Mary")) == 1


def test_conversations_have_a_template():
    messages = [{"role": "user", "content": "Hello"}]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|>user: Hello\nassistant:"
