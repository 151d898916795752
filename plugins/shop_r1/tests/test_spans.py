"""Tokens placed in the text they decode to, and refused where that cannot be done."""

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensd_server.tiny_models import tiny_tokenizer
from lensd_shop_r1.spans import TokensNotAligned, token_spans


class TinyCard:
    """What of a model card is asked for here."""

    def __init__(self) -> None:
        self.tokenizer = tiny_tokenizer()

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(tokens)))

    def token_text(self, token: int) -> str:
        return self.decode([token])


CARD: Any = TinyCard()


def encode(text: str) -> list[int]:
    return list(CARD.tokenizer.encode(text, add_special_tokens=False))


#: The tiny tokenizer knows no merged replacement character: runs of it are the one thing it cannot place.
plain = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=40)


@given(plain)
def test_spans_follow_one_another_and_cover_the_text(text: str) -> None:
    tokens = encode(text)
    spans = token_spans(tokens, text, CARD)
    assert len(spans) == len(tokens)
    assert "".join(dict.fromkeys(text[a:b] for a, b in dict.fromkeys(spans))) or not text
    at = 0
    for start, end in dict.fromkeys(spans):
        assert start == at
        at = end
    assert at == len(text)


@given(plain)
def test_spans_are_at_least_those_of_the_tokenizer(text: str) -> None:
    encoded: Any = CARD.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = token_spans(encoded["input_ids"], text, CARD)
    for (a, b), (start, end) in zip(encoded["offset_mapping"], spans, strict=True):
        assert start <= a <= b <= end


def test_a_replacement_character_is_not_half_of_another() -> None:
    text = 'a\ufffd", b'
    assert "".join(text[a:b] for a, b in dict.fromkeys(token_spans(encode(text), text, CARD))) == text


class Strange:
    """Decodes tokens together in another way than alone."""

    def token_text(self, token: int) -> str:
        return "?"

    def decode(self, tokens: Sequence[int]) -> str:
        return "?" * len(tokens)


def test_a_tokenizer_that_cannot_be_followed_is_refused() -> None:
    with pytest.raises(TokensNotAligned, match="token 0 of the output cannot be placed at character 0"):
        token_spans([1, 2], "ab", Strange())  # type: ignore[arg-type]
    with pytest.raises(TokensNotAligned, match="at character 2"):
        token_spans([1, 2], "???", Strange())  # type: ignore[arg-type]
