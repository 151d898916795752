"""From parameters to token rows: one item per prompt, checked against the model before it runs."""

from collections.abc import Iterator
from dataclasses import dataclass

from lensd_api import FieldViolation, InvalidParams, LensdError, ModelCard
from lensd_dla.params import DlaParams


@dataclass(frozen=True, slots=True)
class Item:
    """One row to explain; ``name`` is empty unless several prompts were given.

    ``positions`` are non-negative, each once, in the order asked.
    """

    name: str
    tokens: tuple[int, ...]
    positions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RefusedItem:
    """One prompt of several that cannot run."""

    name: str
    error: LensdError


def read_items(params: DlaParams, card: ModelCard) -> Iterator[Item | RefusedItem]:
    """Raises InvalidParams for a single prompt that cannot run; one of several is refused alone."""
    if params.prompts is None:
        tokens = _tokens(params, card)
        yield Item("", tokens, _positions(params, len(tokens)))
        return
    for number, prompt in enumerate(params.prompts):
        try:
            tokens = card.encode(prompt, field=f"prompts[{number}]")
            yield Item(str(number), tokens, _positions(params, len(tokens)))
        except LensdError as error:
            yield RefusedItem(str(number), error)


def _tokens(params: DlaParams, card: ModelCard) -> tuple[int, ...]:
    if params.prompt is not None:
        return card.encode(params.prompt)
    if params.messages is not None:
        return card.encode_chat([message.model_dump() for message in params.messages])
    tokens = params.tokens or ()
    size, longest = card.anatomy.vocab_size, card.anatomy.context_length
    if len(tokens) > longest:
        raise InvalidParams.field("tokens", f"{len(tokens)} tokens, but the context holds {longest}")
    wrong = [number for number, token in enumerate(tokens) if token >= size]
    if wrong:
        violations = [
            FieldViolation(f"tokens[{i}]", f"{tokens[i]} is out of range: the vocabulary has {size}")
            for i in wrong[:16]
        ]
        raise InvalidParams(f"{violations[0].field}: {violations[0].description}", violations=violations)
    return tokens


def _positions(params: DlaParams, length: int) -> tuple[int, ...]:
    if params.positions == "all":
        return tuple(range(length))
    wrong = [i for i, position in enumerate(params.positions) if not -length <= position < length]
    if wrong:
        violations = [
            FieldViolation(
                f"positions[{i}]", f"{params.positions[i]} is out of range: the row has {length} tokens"
            )
            for i in wrong[:16]
        ]
        raise InvalidParams(f"{violations[0].field}: {violations[0].description}", violations=violations)
    return tuple(dict.fromkeys(position % length for position in params.positions))
