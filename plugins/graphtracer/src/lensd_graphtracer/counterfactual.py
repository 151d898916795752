"""Would the run have ended otherwise? The likelihood of an answer when a step is left out.

Let c(step) = log p(answer | all steps) - log p(answer | all but the step). For the right answer a negative
value says that the step stood in its way; for the wrong answer given, a positive one that the
step led to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lensd_api import BlockingModelHandle, Row
from lensd_graphtracer.flow import Segment

Which = Literal["right", "given"]


@dataclass(frozen=True, slots=True)
class Effect:
    """What leaving out ``step`` takes from the log-probability of an answer, in nats."""

    step: int
    answer: Which
    support: float


def measure_support(
    preamble: tuple[int, ...],
    context: Sequence[Segment],
    answer: str,
    which: Which,
    model: BlockingModelHandle,
) -> list[Effect]:
    """One effect a step of ``context``, which must fit the model with the answer."""
    question = model.encode("Final answer:", special_tokens=False, field="trace")
    wanted = model.encode(f" {answer}", special_tokens=False, field="trace")

    def row(without: int | None) -> Row:
        kept = (s.tokens for k, s in enumerate(context) if k != without)
        return Row(preamble + tuple(t for tokens in kept for t in tokens) + question + wanted)

    rows = [row(None), *(row(k) for k in range(len(context)))]
    scores = [float(values[-len(wanted) :].sum()) for values in model.logprobs(rows)]
    return [Effect(segment.step, which, scores[0] - scores[1 + k]) for k, segment in enumerate(context)]
