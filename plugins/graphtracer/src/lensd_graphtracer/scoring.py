"""Scores of predictions against labels: exact and as the benchmark's own script counts, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

#: Resamples of a bootstrap interval, and its seed.
RESAMPLES, SEED = 10_000, 0
#: Distances at which a step counts as nearly right.
NEAR = (1, 2, 5)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How right one prediction is: 1 or 0, or a probability for a rule that draws lots."""

    agent: float
    step: float
    step_substring: float
    near: tuple[float, ...]


def judge(agent: str, step: int | None, right_agent: str, right_step: int) -> Outcome:
    """One prediction. The substring score asks whether the label's digits stand in the prediction's."""
    if step is None:
        return Outcome(float(agent == right_agent), 0.0, 0.0, (0.0,) * len(NEAR))
    return Outcome(
        agent=float(agent == right_agent),
        step=float(step == right_step),
        step_substring=float(str(right_step) in str(step)),
        near=tuple(float(abs(step - right_step) <= k) for k in NEAR),
    )


def judge_uniform(agents: Sequence[str], right_agent: str, right_step: int) -> Outcome:
    """What a step drawn uniformly is worth on average, exactly."""
    each = [judge(agent, i, right_agent, right_step) for i, agent in enumerate(agents)]
    n = len(each)
    return Outcome(
        agent=sum(o.agent for o in each) / n,
        step=sum(o.step for o in each) / n,
        step_substring=sum(o.step_substring for o in each) / n,
        near=tuple(sum(o.near[k] for o in each) / n for k in range(len(NEAR))),
    )


@dataclass(frozen=True, slots=True)
class Score:
    """A share in percent with its bootstrap 95 % interval."""

    percent: float
    low: float
    high: float


def score(values: Sequence[float]) -> Score:
    """Mean of ``values`` in percent. Runs are resampled with replacement; the seed is fixed."""
    array = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(SEED).integers(0, len(array), size=(RESAMPLES, len(array)))
    low, high = np.percentile(array[drawn].mean(axis=1), [2.5, 97.5])
    return Score(100 * float(array.mean()), 100 * float(low), 100 * float(high))


def scores(outcomes: Sequence[Outcome]) -> Mapping[str, Score]:
    """Every score of a method on one subset."""
    found = {
        "agent": score([o.agent for o in outcomes]),
        "step": score([o.step for o in outcomes]),
        "step_substring": score([o.step_substring for o in outcomes]),
    }
    return found | {f"step_within_{k}": score([o.near[i] for o in outcomes]) for i, k in enumerate(NEAR)}
