"""Information flow: how much likelier a step's words are with an earlier step before them.

I(i -> j) = log p(output_j | context) - log p(output_j | context without i), in nats per token. Every
step is tokenised by itself, so that leaving one out removes exactly its tokens and moves the
later ones up: the same as masking the span and renumbering the positions after it, at less cost.
Long logs do not fit: steps are cut to their beginning and end and old ones are left out, and the
plan says which.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lensd_api import BlockingModelHandle, ModelCard, Row
from lensd_graphtracer.params import GraphTracerParams
from lensd_graphtracer.trace import Step

#: Stands where the middle of a step was left out.
_GAP = " ... "
#: Rows sent to the engine at a time.
ROWS_AT_ONCE = 32
#: Shortest and longest evidence span in tokens.
_SPAN = (1, 12)


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens that stand for a step in the context of later ones."""

    step: int
    tokens: tuple[int, ...]
    cut: bool


@dataclass(frozen=True, slots=True)
class Target:
    """A step whose likelihood is measured: what comes before it, and its own tokens."""

    step: int
    context: tuple[Segment, ...]
    output: tuple[int, ...]
    #: "Agent: ", with which the output's tokens begin.
    header: str
    output_cut: bool
    #: Earlier content steps that did not fit the window.
    left_out: int


@dataclass(frozen=True, slots=True)
class FlowPlan:
    """All rows of a request, before any is run. ``skipped`` steps were not measured for want of rows."""

    preamble: tuple[int, ...]
    targets: tuple[Target, ...]
    skipped: tuple[int, ...]
    cut_steps: int
    #: The steps that stand before an answer: all of them, or the newest that fit the window.
    ending: tuple[Segment, ...]

    @property
    def rows(self) -> int:
        """Rows the model will run."""
        return sum(1 + len(target.context) for target in self.targets)

    @property
    def tokens(self) -> int:
        """Tokens of all rows."""
        total = 0
        for target in self.targets:
            lengths = [len(segment.tokens) for segment in target.context]
            whole = len(self.preamble) + sum(lengths) + len(target.output)
            total += whole * (1 + len(lengths)) - sum(lengths)
        return total


@dataclass(frozen=True, slots=True)
class Flow:
    """What ``target`` owes to ``source``: nats per token, in all, and the span that shows it best."""

    source: int
    target: int
    per_token: float
    total: float
    start: int
    end: int


def plan_flow(task: str, steps: Sequence[Step], params: GraphTracerParams, card: ModelCard) -> FlowPlan:
    """What to run. Windows are shortened to the model's context where they do not fit it."""
    room = card.anatomy.context_length
    output_tokens = min(params.output_tokens, room // 4)
    # With special tokens: some models know no text that does not begin with theirs.
    preamble = card.encode(f"Task: {task[: room // 4]}\n\n", field="trace")[: room // 4]
    window = min(params.window_tokens, room - len(preamble) - output_tokens - 8)
    segments = {step.index: _segment(step, params.step_tokens, card) for step in steps}
    wanted = None if params.flow_steps is None else frozenset(params.flow_steps)
    chosen: list[Target] = []
    skipped: list[int] = []
    rows = 0
    for k in range(len(steps) - 1, 0, -1):
        if wanted is not None and steps[k].index not in wanted:
            continue
        target = _target([segments[s.index] for s in steps[:k]], steps[k], window, output_tokens, card)
        if rows + 1 + len(target.context) > params.max_rows:
            skipped.append(steps[k].index)
            continue
        rows += 1 + len(target.context)
        chosen.append(target)
    cut = sum(segment.cut for segment in segments.values())
    ending = _newest([segments[step.index] for step in steps], window)
    return FlowPlan(preamble, tuple(reversed(chosen)), tuple(reversed(skipped)), cut, ending)


def measure_flow(
    plan: FlowPlan, steps: Mapping[int, Step], model: BlockingModelHandle
) -> Iterator[list[Flow]]:
    """Per target its flows, in the order of the plan."""
    for target in plan.targets:
        whole = _row(plan.preamble, target, None)
        rows = [whole, *(_row(plan.preamble, target, k) for k in range(len(target.context)))]
        n = len(target.output)
        gains: list[np.ndarray[tuple[int, ...], np.dtype[np.float64]]] = []
        for start in range(0, len(rows), ROWS_AT_ONCE):
            for values in model.logprobs(rows[start : start + ROWS_AT_ONCE]):
                gains.append(values[-n:].double().numpy())
        yield [
            _flow(segment.step, target, gains[0] - gains[1 + k], steps[target.step], model)
            for k, segment in enumerate(target.context)
        ]


def _row(preamble: tuple[int, ...], target: Target, without: int | None) -> Row:
    context = (s.tokens for k, s in enumerate(target.context) if k != without)
    return Row(preamble + tuple(token for tokens in context for token in tokens) + target.output)


def _segment(step: Step, limit: int, card: ModelCard) -> Segment:
    tokens = _encode(f"{step.agent}: {step.content.strip()}\n\n", card)
    if len(tokens) <= limit:
        return Segment(step.index, tokens, cut=False)
    gap = _encode(_GAP, card)
    rest = max(2, limit - len(gap))
    head = (rest + 1) // 2
    return Segment(step.index, tokens[:head] + gap + tokens[len(tokens) - (rest - head) :], cut=True)


def _newest(segments: Sequence[Segment], window: int) -> tuple[Segment, ...]:
    """The newest segments that together have at most ``window`` tokens."""
    used, first = 0, len(segments)
    while first > 0 and used + len(segments[first - 1].tokens) <= window:
        first -= 1
        used += len(segments[first].tokens)
    return tuple(segments[first:])


def _target(
    before: Sequence[Segment], step: Step, window: int, output_tokens: int, card: ModelCard
) -> Target:
    context = _newest(before, window)
    header = f"{step.agent}: "
    tokens = _encode(header + step.content.strip(), card)
    left_out = len(before) - len(context)
    return Target(step.index, context, tokens[:output_tokens], header, len(tokens) > output_tokens, left_out)


def _flow(
    source: int,
    target: Target,
    gain: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]",
    step: Step,
    card: ModelCard,
) -> Flow:
    start, end = best_span(gain)
    text = card.decode(target.output[start:end]).strip()
    near = len(card.decode(target.output[:start])) - len(target.header)
    content = step.content
    lead = len(content) - len(content.lstrip())
    at = content.find(text, max(0, near + lead - 4)) if text else -1
    span = (at, at + len(text)) if at >= 0 else (0, 0)
    return Flow(source, target.step, float(gain.mean()), float(gain.sum()), *span)


def best_span(gain: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> tuple[int, int]:
    """The tokens ``start:end`` in a row, at most twelve, that gain most together."""
    sums = np.concatenate([[0.0], np.cumsum(gain)])
    best, span = -np.inf, (0, 1)
    for length in range(_SPAN[0], min(_SPAN[1], len(gain)) + 1):
        totals = sums[length:] - sums[:-length]
        k = int(totals.argmax())
        if totals[k] > best:
            best, span = float(totals[k]), (k, k + length)
    return span


def _encode(text: str, card: ModelCard) -> tuple[int, ...]:
    """Tokens of ``text`` without special ones, however long: the card refuses more than the context."""
    # A token is at least one byte, so pieces this long always fit.
    size = max(16, card.anatomy.context_length // 4)
    pieces = [text[k : k + size] for k in range(0, len(text), size)]
    return tuple(t for piece in pieces for t in card.encode(piece, special_tokens=False, field="trace"))
