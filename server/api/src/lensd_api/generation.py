"""Letting a model write on: how tokens are chosen, when it stops, and what is told of it."""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

R_co = TypeVar("R_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How each token is chosen, and when to stop.

    A ``temperature`` of 0 takes the likeliest token. Otherwise tokens are drawn from
    ``softmax(logits / temperature)``, restricted to the ``top_k`` likeliest (0 for all) and then to the
    fewest that hold ``top_p`` of the probability. Row ``i`` draws with ``seed + i``, whoever shares its
    batches: the same row, seed and model give the same tokens.
    """

    max_new_tokens: int = 64
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    #: Tokens after which a row has ended; ``None`` for the model's own (its end of sequence).
    stop_tokens: tuple[int, ...] | None = None
    #: Texts that end a row as soon as it has written one of them.
    stop_texts: tuple[str, ...] = ()


class StopReason(StrEnum):
    """Why a row has ended."""

    END_TOKEN = "end_token"  # it wrote one of the stop tokens
    STOP_TEXT = "stop_text"  # it wrote one of the stop texts
    MAX_NEW_TOKENS = "max_new_tokens"
    CONTEXT = "context"  # the model's context is full


@dataclass(frozen=True, slots=True)
class NewToken:
    """The next token of row ``row``. ``logprob`` is what the model gave it, in nats, before temperature."""

    row: int
    token: int
    logprob: float


@dataclass(frozen=True)  # no slots, as for Reduce
class Generated(Generic[R_co]):
    """Row ``row`` has ended. Comes after the last of its :class:`NewToken`.

    ``tokens`` are all that were written, the stop token included; ``text`` is what they say without it,
    cut before a stop text. ``before`` and ``after`` are what ``capture`` gives for the row as it came and
    for the row with all its tokens; ``None`` without a capture.
    """

    row: int
    tokens: tuple[int, ...]
    text: str
    stop: StopReason
    logprobs: tuple[float, ...] = field(default=())
    before: R_co | None = None
    after: R_co | None = None
