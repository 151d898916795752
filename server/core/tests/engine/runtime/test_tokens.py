"""Text to tokens and back, with errors that name the caller's field."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from lensd_api import InvalidParams, RequirementNotMet
from lensd_server.engine.models.tokens import Tokens
from lensd_server.tiny_models import tiny_tokenizer


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    return Tokens(tiny_tokenizer(), 16)


def encode(tokens: Tokens, text: str, field: str = "prompt") -> tuple[int, ...]:
    return tokens.encode(text, special_tokens=True, field=field)


def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2 has it: words begin with a mark, and a BOS comes first."""
    vocabulary = {"<s>": 0, "<unk>": 1, "▁The": 2, "▁Paris": 3, "is": 4}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", unk_token="<unk>")


def test_text_round_trips(tokens: Tokens) -> None:
    assert tokens.decode(encode(tokens, "Paris, é ✓")) == "Paris, é ✓"


def test_a_token_keeps_its_leading_space(tokens: Tokens) -> None:
    ids = encode(tokens, "The capital")
    assert "".join(tokens.token_text(i) for i in ids) == "The capital"


def test_a_sentencepiece_token_keeps_its_leading_space() -> None:
    assert Tokens(sentencepiece(), 16).token_text(3) == " Paris"
    assert Tokens(sentencepiece(), 16).token_text(4) == "is"


def test_special_tokens_follow_the_tokenizers_own_default(tokens: Tokens) -> None:
    own = Tokens(sentencepiece(), 16)
    assert own.encode("The Paris", special_tokens=True, field="p") == (0, 2, 3)
    assert own.encode("The Paris", special_tokens=False, field="p") == (2, 3)
    assert 0 not in encode(tokens, "The"), "this one adds none by itself"


def test_punctuation_is_decoded_as_it_was_written(tokens: Tokens) -> None:
    assert tokens.decode(encode(tokens, "a , b .")) == "a , b ."


def test_an_empty_text_names_its_field(tokens: Tokens) -> None:
    with pytest.raises(InvalidParams) as refused:
        encode(tokens, "", field="prompts[2]")
    assert refused.value.violations[0].field == "prompts[2]"


def test_a_text_beyond_the_context_says_by_how_much(tokens: Tokens) -> None:
    with pytest.raises(InvalidParams, match="context holds 16") as refused:
        encode(tokens, "x1" * 100)
    assert refused.value.violations[0].field == "prompt"


class Counting:
    """A tokenizer that counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    def encode(self, text: str, *, add_special_tokens: bool, verbose: bool) -> list[int]:
        self.asked += 1
        return [1, 2] if add_special_tokens else [2]


def test_a_text_asked_for_again_is_remembered_and_a_long_one_is_not() -> None:
    """An analyzer asks when it estimates, and when it runs; what is kept is bounded."""
    tokenizer: Any = Counting()
    own = Tokens(tokenizer, 16)
    assert [encode(own, "The"), encode(own, "The")] == [(1, 2)] * 2
    assert tokenizer.asked == 1
    assert own.encode("The", special_tokens=False, field="p") == (2,)
    assert tokenizer.asked == 2
    for _ in range(2):
        encode(own, "x" * 100_000)
    assert tokenizer.asked == 4


def test_half_a_character_is_refused(tokens: Tokens) -> None:
    with pytest.raises(InvalidParams, match="character 1"):
        encode(tokens, "a\ud800")


def test_a_chat_ends_where_the_reply_begins(tokens: Tokens) -> None:
    roomy = Tokens(tiny_tokenizer(), 128)
    ids = roomy.encode_chat([{"role": "user", "content": "Hi"}], field="messages")
    assert roomy.decode(ids) == "<|bos|>user: Hi\nassistant:"


def test_a_tokenizer_without_a_template_is_no_chat_model() -> None:
    with pytest.raises(RequirementNotMet, match="chat template"):
        Tokens(sentencepiece(), 16).encode_chat([{"role": "user", "content": "Hi"}], field="messages")


def test_messages_the_template_refuses_are_the_callers_fault() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('a secret') }}"
    with pytest.raises(InvalidParams) as refused:
        Tokens(tokenizer, 16).encode_chat([{"role": "user", "content": "Hi"}], field="messages")
    assert "secret" not in refused.value.message
    assert refused.value.violations[0].field == "messages"
