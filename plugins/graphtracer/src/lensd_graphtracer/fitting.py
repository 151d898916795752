"""Fits the ranker: ridge-regularised conditional logit by Newton's method, convex and deterministic.

Used by the training script and the cross-validation of the evaluation, never while serving.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lensd_graphtracer.features import ANSWER_FEATURE, FEATURES, Family, Scene
from lensd_graphtracer.ranker import Ranker, Weights, rank

#: Variance of the weights' Gaussian prior is 1 / RIDGE, on standardised features.
RIDGE: Mapping[Family, float] = {Family.PEER: 3.0, Family.DIRECTED: 1.0}
AGENT_EMPHASIS = 0.5

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sample:
    """A run with its label. Runs of one ``group`` (the same question) never train and test each other."""

    scene: Scene
    step: int
    group: str


def group_of(question: str) -> str:
    """Digest of a question, blind to case and spaces."""
    return hashlib.sha256(" ".join(question.lower().split()).encode()).hexdigest()[:16]


def fit(
    samples: Sequence[Sample],
    leave_out: frozenset[str] = frozenset(),
    only: frozenset[Family] = frozenset(Family),
) -> Ranker:
    """The ranker for ``samples``, with weights of the families ``only``; zero for one without samples.

    Samples whose labelled step is no candidate teach nothing and are passed over.
    ``leave_out`` names features that are not used.
    """
    families: dict[Family, Weights] = {}
    for family in sorted(only):
        described = FEATURES[family]
        names = [name for name in described if name not in leave_out]
        mine = [s for s in samples if s.scene.family is family]
        if mine and ANSWER_FEATURE in mine[0].scene.candidates[0].features:
            names.append(ANSWER_FEATURE)
        families[family] = _fit_family(mine, names, RIDGE[family])
    return Ranker(families, AGENT_EMPHASIS)


def _fit_family(samples: Sequence[Sample], names: Sequence[str], ridge: float) -> Weights:
    pairs: list[tuple[Array, int]] = []
    rows: list[Array] = []
    for sample in samples:
        matrix = np.array([[c.features[n] for n in names] for c in sample.scene.candidates], dtype=np.float64)
        rows.append(matrix)
        steps = [c.step for c in sample.scene.candidates]
        if sample.step in steps:
            pairs.append((matrix, steps.index(sample.step)))
    if not pairs:
        return Weights(dict.fromkeys(names, 0.0), dict.fromkeys(names, 1.0))
    deviation = np.concatenate(rows).std(axis=0)
    scales = np.where(deviation > 0, deviation, 1.0)
    weights = newton([(matrix / scales, label) for matrix, label in pairs], ridge)
    return Weights(
        dict(zip(names, weights.tolist(), strict=True)), dict(zip(names, scales.tolist(), strict=True))
    )


def newton(pairs: Sequence[tuple[Array, int]], ridge: float) -> Array:
    """Weights that maximise sum of log p(label) - ridge/2 |w|^2; steps are halved until they help."""
    size = pairs[0][0].shape[1]
    weights = np.zeros(size)
    value = objective(pairs, weights, ridge)
    for _ in range(100):
        gradient, hessian = -ridge * weights, ridge * np.eye(size)
        for matrix, label in pairs:
            p = _softmax(matrix @ weights)
            mean = p @ matrix
            gradient += matrix[label] - mean
            hessian += (matrix * p[:, None]).T @ matrix - np.outer(mean, mean)
        step = np.linalg.solve(hessian, gradient)
        while objective(pairs, weights + step, ridge) < value and np.abs(step).max() > 1e-12:
            step /= 2
        weights = weights + step
        value = objective(pairs, weights, ridge)
        if np.abs(step).max() < 1e-9:
            break
    return weights


def objective(pairs: Sequence[tuple[Array, int]], weights: Array, ridge: float) -> float:
    """The penalised log-likelihood."""
    total = -0.5 * ridge * float(weights @ weights)
    for matrix, label in pairs:
        z = matrix @ weights
        total += float(z[label] - z.max()) - math.log(float(np.exp(z - z.max()).sum()))
    return total


def _softmax(z: Array) -> Array:
    p = np.exp(z - z.max())
    return p / p.sum()


def held_out(samples: Sequence[Sample], leave_out: frozenset[str] = frozenset()) -> list[tuple[int, Ranker]]:
    """For every sample the ranker fitted on all samples of other groups, with the sample's number."""
    by_group: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        by_group.setdefault(sample.group, []).append(i)
    found: list[tuple[int, Ranker]] = []
    for members in by_group.values():
        needed = frozenset(samples[i].scene.family for i in members)
        ranker = fit([s for s in samples if s.group != samples[members[0]].group], leave_out, needed)
        found += [(i, ranker) for i in members]
    return sorted(found, key=lambda pair: pair[0])


def temperature(samples: Sequence[Sample], judges: Sequence[tuple[int, Ranker]], family: Family) -> float:
    """The temperature that makes held-out probabilities likeliest, from a fixed grid.

    ``judges`` are what :func:`held_out` gives for ``samples``.
    """
    cases = [(i, ranker) for i, ranker in judges if samples[i].scene.family is family]
    grid = [round(0.6 + 0.1 * k, 1) for k in range(25)]
    return max(grid, key=lambda t: _likelihood(samples, cases, family, t)) if cases else 1.0


def _likelihood(
    samples: Sequence[Sample], cases: Sequence[tuple[int, Ranker]], family: Family, at: float
) -> float:
    total = 0.0
    for i, ranker in cases:
        mine = ranker.families[family]
        cooled = Ranker({family: Weights(mine.weights, mine.scales, at)}, ranker.agent_emphasis)
        p = {s.step: s.probability for s in rank(samples[i].scene, cooled)}.get(samples[i].step)
        total += math.log(p) if p is not None else 0.0
    return total
