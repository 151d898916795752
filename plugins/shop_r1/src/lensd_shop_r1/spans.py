"""Which characters each token stands for, found by decoding: exact, or refused.

A character may be spread over several tokens, which then all stand for it, as offsets of the usual
tokenizers have it.
"""

from collections.abc import Sequence

from lensd_api import AnalysisError, ModelCard

#: What a decoder writes for part of a character.
_PARTIAL = "\N{REPLACEMENT CHARACTER}"
#: Tokens of one group of characters: a character has at most four bytes, a token may hold parts of two.
_LONGEST = 16


class TokensNotAligned(AnalysisError):
    """The text of the tokens one by one is not the text of all of them."""

    reason = "TOKENS_NOT_ALIGNED"

    def __init__(self, *, token: int, character: int) -> None:
        super().__init__(
            f"token {token} of the output cannot be placed at character {character}: this tokenizer "
            "decodes tokens differently alone and together; ask for self_certainty='off'"
        )


def token_spans(tokens: Sequence[int], text: str, card: ModelCard) -> list[tuple[int, int]]:
    """``(start, end)`` in ``text``, which is what ``tokens`` decode to, of each token.

    Raises TokensNotAligned.
    """
    spans: list[tuple[int, int]] = []
    at = 0
    while len(spans) < len(tokens):
        first = len(spans)
        for last in range(first + 1, min(first + _LONGEST, len(tokens)) + 1):
            piece = _piece(tokens[first:last], card)
            if at == 0 and first == 0 and not text.startswith(piece):
                piece = piece.removeprefix(" ")  # SentencePiece drops the space before a text
            if text.startswith(piece, at) and _is_whole(piece, tokens[last : last + 1], text, at, card):
                spans += [(at, at + len(piece))] * (last - first)
                at += len(piece)
                break
        else:
            raise TokensNotAligned(token=first, character=at)
    if at != len(text):
        raise TokensNotAligned(token=len(tokens), character=at)
    return spans


def _is_whole(piece: str, following: Sequence[int], text: str, at: int, card: ModelCard) -> bool:
    """Whether ``piece`` ends between characters: a real replacement character looks like half of one."""
    if not piece.endswith(_PARTIAL) or not following:
        return True
    then = _piece(following, card).partition(_PARTIAL)[0] or _PARTIAL
    return text.startswith(then, at + len(piece))


def _piece(tokens: Sequence[int], card: ModelCard) -> str:
    return card.token_text(tokens[0]) if len(tokens) == 1 else card.decode(tokens)
