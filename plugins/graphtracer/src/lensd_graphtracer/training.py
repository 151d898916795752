"""``python -m lensd_graphtracer.training FOLDER``: fits the ranker and writes ``weights.json``.

FOLDER holds Who&When files in folders, one a subset. The card states what was read, so that
an evaluation can tell files the weights have seen from files they have not.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lensd_graphtracer.benchmark import Case, read_cases, to_sample
from lensd_graphtracer.features import Family
from lensd_graphtracer.fitting import AGENT_EMPHASIS, RIDGE, Sample, fit, held_out, temperature
from lensd_graphtracer.ranker import Ranker, rank


def train(cases: Sequence[Case]) -> Mapping[str, Any]:
    """Weights and card for ``cases``. The same cases give the same file."""
    return {
        "rankers": {
            "without_answer": _train(cases, with_answer=False),
            "with_answer": _train(cases, with_answer=True),
        },
        "card": {
            "model": "conditional logit over the steps of one run, L2-regularised, one set of weights a family",
            "data": "Who&When (arXiv 2505.00212, MIT licence), part of both subsets; labels by its annotators",
            "files": len(cases),
            "held_out": "accuracy in percent when runs of the same question are left out together; features and ridge "
            "were chosen on these same files, so it is optimistic",
            "not_for": "verdicts about people; runs unlike these two systems, whose probabilities nobody checked",
            "groups": sorted({case.group for case in cases}),
        },
    }


def _train(cases: Sequence[Case], *, with_answer: bool) -> Mapping[str, Any]:
    samples = [to_sample(case, with_answer=with_answer) for case in cases]
    ranker, judges = fit(samples), held_out(samples)
    families: dict[str, Any] = {}
    for family, weights in ranker.families.items():
        families[family.value] = {
            "features": {
                name: {"weight": round(weights.weights[name], 6), "scale": round(weights.scales[name], 6)}
                for name in weights.weights
            },
            "temperature": temperature(samples, judges, family),
            "ridge": RIDGE[family],
            "trained_on": sum(s.scene.family is family for s in samples),
            "held_out": _held_out(cases, samples, judges, family),
        }
    return {"agent_emphasis": AGENT_EMPHASIS, "families": families}


def _held_out(
    cases: Sequence[Case],
    samples: Sequence[Sample],
    judges: Sequence[tuple[int, Ranker]],
    family: Family,
) -> Mapping[str, float]:
    agents: list[bool] = []
    steps: list[bool] = []
    for i, ranker in judges:
        if samples[i].scene.family is family:
            first = rank(samples[i].scene, ranker)[0]
            agents.append(first.candidate.agent == cases[i].agent)
            steps.append(first.step == cases[i].step)
    n = max(1, len(agents))
    return {
        "agent": round(100 * sum(agents) / n, 1),
        "step": round(100 * sum(steps) / n, 1),
        "n": len(agents),
    }


def main() -> None:
    """Trains and writes."""
    parser = argparse.ArgumentParser(prog="python -m lensd_graphtracer.training", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("weights.json"))
    asked = parser.parse_args()
    weights = train(read_cases(asked.folder))
    asked.out.write_text(json.dumps(weights, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for setting, ranker in weights["rankers"].items():
        for name, family in ranker["families"].items():
            print(f"{setting} {name}: {family['trained_on']} runs, held out {family['held_out']}")


if __name__ == "__main__":
    main()
