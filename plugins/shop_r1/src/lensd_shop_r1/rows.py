"""From a rollout to the row that is run for it: its tokens, and which of them are asked about.

Context and output are encoded apart and put together, so that the output's tokens do not depend on
the context. A token belongs to the rationale when it overlaps the raw value of ``rationale``.
"""

from dataclasses import dataclass

from lensd_api import InvalidParams, ModelCard, Row
from lensd_shop_r1.output import Output, ParseMode, read_output
from lensd_shop_r1.params import Rollout
from lensd_shop_r1.spans import TokensNotAligned, token_spans

#: Text has fewer on average; only runs of white space and the like reach it.
_CHARS_A_TOKEN = 8


@dataclass(frozen=True, slots=True)
class AskedRow:
    """A row and the tokens of its output that are asked about, from ``first`` on (an index of the row).

    ``text`` is what the output's tokens decode to, ``text[start:end]`` the raw rationale in it,
    ``spans`` the characters of the asked tokens. ``rationale`` selects those that belong to it.
    """

    row: Row
    first: int
    text: str
    start: int
    end: int
    spans: tuple[tuple[int, int], ...]
    rationale: slice

    @property
    def positions(self) -> tuple[int, ...]:
        """Where the asked tokens are predicted: one before each."""
        return tuple(range(self.first - 1, self.first - 1 + len(self.spans)))


def ask(
    rollout: Rollout, index: int, card: ModelCard, mode: ParseMode, *, parsed: bool, whole_output: bool
) -> AskedRow | None:
    """The row of ``rollout``; ``None`` when nothing of it is asked about.

    Asked are the rationale's tokens where the output is well-formed (``parsed``), or all of its
    tokens. Raises InvalidParams when it is too long for the model, TokensNotAligned.
    """
    if not rollout.output or not (parsed or whole_output):
        return None
    path = f"items[{index}]"
    before = _context(rollout, path, card)
    after = _encode(rollout.output, f"{path}.output", card, special_tokens=False)
    if (length := len(before) + len(after)) > card.anatomy.context_length:
        raise InvalidParams.field(
            f"{path}.output",
            f"with its context it has {length} tokens, but the model's context holds "
            f"{card.anatomy.context_length}; shorten either",
            reason="CONTEXT_EXCEEDED",
        )
    text = card.decode(after)
    spans = token_spans(after, text, card)
    start, end = _rationale(rollout.output, text, mode) if parsed else (0, 0)
    own = [i for i, (a, b) in enumerate(spans) if a < end and b > start]
    chosen = slice(own[0], own[-1] + 1) if own else slice(0, 0)
    asked = slice(0, len(after)) if whole_output else chosen
    if asked.start == asked.stop:
        return None
    return AskedRow(
        row=Row(before + after),
        first=len(before) + asked.start,
        text=text,
        start=start,
        end=end,
        spans=tuple(spans[asked]),
        rationale=slice(chosen.start - asked.start, chosen.stop - asked.start) if own else slice(0, 0),
    )


def _context(rollout: Rollout, path: str, card: ModelCard) -> tuple[int, ...]:
    if rollout.messages is not None:
        turns = [message.model_dump() for message in rollout.messages]
        return card.encode_chat(turns, field=f"{path}.messages")
    return _encode(rollout.context or "", f"{path}.context", card, special_tokens=True)


def _encode(text: str, field: str, card: ModelCard, *, special_tokens: bool) -> tuple[int, ...]:
    """As the card does, but a text of megabytes is refused before all of it is tokenised."""
    beginning = _CHARS_A_TOKEN * card.anatomy.context_length
    if len(text) > beginning:
        card.encode(text[:beginning], special_tokens=special_tokens, field=field)
    return card.encode(text, special_tokens=special_tokens, field=field)


def _rationale(output: str, text: str, mode: ParseMode) -> tuple[int, int]:
    """Where the raw rationale stands in ``text``: a tokenizer may normalise what it is given."""
    found = read_output(text, mode)
    if not isinstance(found, Output):
        at = next((i for i, (a, b) in enumerate(zip(output, text, strict=False)) if a != b), len(text))
        raise TokensNotAligned(token=0, character=at)
    return found.start, found.end
