"""Scores one rollout: what can be read off it at once, then what the model has to say."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from jaxtyping import Float
from torch import Tensor

from lensd_api import (
    AnalysisError,
    Capture,
    Exhausted,
    FailedPrecondition,
    InvalidRequest,
    LensdError,
    ModelHandle,
    Reduce,
    Site,
    Span,
    patiently,
)
from lensd_shop_r1.action import ActionReward, is_exact, reward_action
from lensd_shop_r1.certainty import TokenNumbers, token_numbers
from lensd_shop_r1.output import Malformed, Output, Predicted, read_output
from lensd_shop_r1.params import RefusedRollout, Rollout, ShopR1Params
from lensd_shop_r1.rows import AskedRow, ask

#: What one rollout may fail of, without an end to the others.
OF_ONE_ITEM = (InvalidRequest, FailedPrecondition, Exhausted)


class NotFinite(AnalysisError):
    """The model's predictions are not numbers; an average over them would hide that."""

    reason = "NOT_FINITE"

    def __init__(self, *, tokens: int) -> None:
        super().__init__(
            f"the predictions of {tokens} rationale tokens are NaN or infinite; the model overflows in "
            "its element type, or masks part of its vocabulary: try float32 or another self_certainty"
        )


@dataclass(frozen=True, slots=True)
class Score:
    """The reward of one rollout in its parts, or the ``error`` for which there is none."""

    index: int
    rollout: Rollout | None
    predicted: Predicted | None = None
    problem: str = ""
    format: float = 0.0
    action: ActionReward = field(default_factory=ActionReward)
    is_exact: bool = False
    #: Mean over the rationale's tokens, in nats; ``None`` without a rationale or when not asked for.
    certainty: float | None = None
    #: Tokens of the rationale that were read.
    tokens: int = 0
    rationale: float = 0.0
    #: The raw rationale and its tokens' certainties, where asked for.
    text: str = ""
    spans: tuple[Span, ...] = ()
    #: Log-probability of each token of the output, where asked for.
    logprobs: Float[Tensor, "token"] | None = None
    error: LensdError | None = None

    @property
    def total(self) -> float:
        """The reward."""
        return self.format + self.action.type + self.action.attribute + self.action.value + self.rationale


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is known before the model runs; ``asked`` is ``None`` when it need not."""

    score: Score
    asked: AskedRow | None = None

    @property
    def size(self) -> int:
        """Tokens to run."""
        return 0 if self.asked is None else len(self.asked.row.tokens)


def prepare(
    index: int, item: Rollout | RefusedRollout, params: ShopR1Params, model: ModelHandle | None
) -> Prepared:
    """Reads and scores the output, and lays out the row that has to run."""
    if isinstance(item, RefusedRollout):
        return Prepared(Score(index, None, error=item.error(index)))
    found = read_output(item.output, params.parse_mode)
    score = _read(index, item, found, params)
    if model is None:
        return Prepared(score)
    try:
        parsed = isinstance(found, Output) and params.self_certainty != "off"
        return Prepared(
            score, ask(item, index, model, params.parse_mode, parsed=parsed, whole_output=params.logprobs)
        )
    except OF_ONE_ITEM as error:
        return Prepared(Score(index, item, error=error))


async def finish(prepared: Prepared, params: ShopR1Params, model: ModelHandle | None) -> Score:
    """Adds what the model says of it."""
    score, asked = prepared.score, prepared.asked
    if asked is None or model is None:
        return score
    try:
        numbers = await _run(asked, model)
        return _with_certainty(score, asked, numbers, params, model.anatomy.vocab_size)
    except OF_ONE_ITEM as error:
        return Score(score.index, score.rollout, error=error)


def _read(index: int, item: Rollout, found: Output | Malformed, params: ShopR1Params) -> Score:
    if isinstance(found, Malformed):
        return Score(index, item, problem=found.problem)
    predicted = found.action
    return Score(
        index,
        item,
        predicted=predicted,
        format=params.format_reward,
        action=reward_action(predicted, item.reference, params),
        is_exact=is_exact(predicted, item.reference),
    )


async def _run(asked: AskedRow, model: ModelHandle) -> TokenNumbers:
    capture = Capture(
        frozenset({Site.FINAL_RESIDUAL}), positions=asked.positions, layers=(), reduce=Reduce(token_numbers)
    )
    (found,) = await patiently(model.forward, [asked.row], capture)
    return TokenNumbers(found[:, 0], found[:, 1], found[:, 2])


def _with_certainty(
    score: Score, asked: AskedRow, numbers: TokenNumbers, params: ShopR1Params, vocab_size: int
) -> Score:
    each = numbers.certainty(params.self_certainty, vocab_size)[asked.rationale]
    if not bool(each.isfinite().all()):
        raise NotFinite(tokens=int((~each.isfinite()).sum()))
    score = replace(score, logprobs=numbers.chosen if params.logprobs else None)
    if not len(each) or params.self_certainty == "off":
        return score
    mean = float(each.mean())
    return replace(
        score,
        certainty=mean,
        tokens=len(each),
        rationale=params.alpha * mean,
        text=asked.text[asked.start : asked.end] if params.token_certainty else "",
        spans=tuple(_spans(asked, floats(each))) if params.token_certainty else (),
    )


def _spans(asked: AskedRow, certainty: Sequence[float]) -> Iterator[Span]:
    """Spans in the rationale; a token that reaches beyond its ends is cut there."""
    length = asked.end - asked.start
    for (start, end), value in zip(asked.spans[asked.rationale], certainty, strict=True):
        yield Span(max(0, start - asked.start), min(length, end - asked.start), value)


def floats(values: Tensor) -> list[float]:
    """The values as Python numbers."""
    return cast("list[float]", values.tolist())  # pyright: ignore[reportUnknownMemberType]
