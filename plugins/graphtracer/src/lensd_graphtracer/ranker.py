"""Who is to blame, as probabilities: a conditional logit over the candidates of one run.

p(step) = softmax over candidates of (weights . features / scales) / temperature. The weights are
plain numbers in ``weights.json``, which also holds the card: what they were trained on and how.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, cast

import numpy as np

from lensd_graphtracer.features import Candidate, Family, Scene


@dataclass(frozen=True, slots=True)
class Weights:
    """Of one family. ``scales`` are the features' standard deviations in training."""

    weights: Mapping[str, float]
    scales: Mapping[str, float]
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Ranker:
    """Weights of both families and how agents and steps are weighed against each other."""

    families: Mapping[Family, Weights]
    #: What the probability of a step's agent counts beside the step's own when one place is chosen.
    agent_emphasis: float


@dataclass(frozen=True, slots=True)
class Suspect:
    """A candidate with its probability, its agent's, and what speaks for and against it."""

    candidate: Candidate
    probability: float
    agent_probability: float
    #: Per feature: its contribution to the score.
    reasons: Mapping[str, float]

    @property
    def step(self) -> int:
        """Place in the log."""
        return self.candidate.step


def rank(scene: Scene, ranker: Ranker) -> tuple[Suspect, ...]:
    """Candidates, most suspicious place first; probabilities add up to 1 over the candidates."""
    family = ranker.families[scene.family]
    reasons = [contributions(candidate.features, family) for candidate in scene.candidates]
    scores = np.array([sum(r.values()) for r in reasons], dtype=np.float64) / family.temperature
    share = np.exp(scores - scores.max())
    share /= share.sum()
    mass: dict[str, float] = {}
    for candidate, p in zip(scene.candidates, share.tolist(), strict=True):
        mass[candidate.agent] = mass.get(candidate.agent, 0.0) + p
    suspects = [
        Suspect(candidate, p, mass[candidate.agent], why)
        for candidate, p, why in zip(scene.candidates, share.tolist(), reasons, strict=True)
    ]
    return tuple(
        sorted(
            suspects, key=lambda s: (-(s.probability + ranker.agent_emphasis * s.agent_probability), s.step)
        )
    )


def contributions(features: Mapping[str, float], family: Weights) -> dict[str, float]:
    """What each feature adds to the score; features without a weight add nothing."""
    return {
        name: family.weights[name] * value / family.scales[name]
        for name, value in features.items()
        if name in family.weights
    }


@cache
def shipped(*, with_answer: bool = False) -> Ranker:
    """The ranker that comes with the package; another one where the right answer may be used."""
    return read_ranker(card()["rankers"]["with_answer" if with_answer else "without_answer"])


@cache
def card() -> Mapping[str, Any]:
    """The whole of ``weights.json``: weights, scales, and the card."""
    text = files("lensd_graphtracer").joinpath("weights.json").read_text(encoding="utf-8")
    return cast("Mapping[str, Any]", json.loads(text))


def read_ranker(values: Mapping[str, Any]) -> Ranker:
    """Weights from JSON. Raises ValueError for what is not finite."""
    families: dict[Family, Weights] = {}
    for name, family in cast("Mapping[str, Mapping[str, Any]]", values["families"]).items():
        features = cast("Mapping[str, Mapping[str, float]]", family["features"])
        read = Weights(
            {f: float(v["weight"]) for f, v in features.items()},
            {f: float(v["scale"]) for f, v in features.items()},
            float(family["temperature"]),
        )
        if not all(map(math.isfinite, (*read.weights.values(), *read.scales.values(), read.temperature))):
            raise ValueError(f"weights of {name} are not finite")
        families[Family(name)] = read
    return Ranker(families, float(values["agent_emphasis"]))


def best_steps(suspects: Sequence[Suspect]) -> list[int]:
    """Steps in order of the ranking."""
    return [suspect.step for suspect in suspects]
