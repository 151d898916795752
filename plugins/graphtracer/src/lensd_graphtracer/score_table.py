"""The evaluation as a Markdown table and as JSON."""

import json
from collections.abc import Sequence
from typing import Any

from lensd_graphtracer.benchmark import Case
from lensd_graphtracer.experiments import Method
from lensd_graphtracer.ranker import card
from lensd_graphtracer.scoring import NEAR, RESAMPLES, Score, score, scores

_COLUMNS = ("agent", "step", "step_substring", *(f"step_within_{k}" for k in NEAR))


def markdown(cases: Sequence[Case], methods: Sequence[Method]) -> str:
    """One table a subset, percent with 95 % intervals, and what must be known to read them."""
    parts: list[str] = []
    for subset in dict.fromkeys(case.subset for case in cases):
        chosen = [i for i, case in enumerate(cases) if case.subset == subset]
        parts.append(f"## {subset} ({len(chosen)} runs)\n")
        heads = [
            "method",
            "agent",
            "step",
            "step, as the official script counts",
            *(f"step ±{k}" for k in NEAR),
        ]
        parts.append("| " + " | ".join(heads) + " |\n|" + " --- |" * len(heads))
        for method in methods:
            found = scores([method.outcomes[i] for i in chosen])
            cells = [_cell(found[name], with_interval=name in ("agent", "step")) for name in _COLUMNS]
            parts.append(f"| {method.name} | " + " | ".join(cells) + " |")
        parts.append("")
    parts.append(_notes(cases, methods))
    return "\n".join(parts)


def _cell(value: Score, *, with_interval: bool) -> str:
    if not with_interval:
        return f"{value.percent:.1f}"
    return f"{value.percent:.1f} [{value.low:.1f}, {value.high:.1f}]"


def _notes(cases: Sequence[Case], methods: Sequence[Method]) -> str:
    seen = seen_questions(cases)
    notes = [
        f"- Percent; intervals are bootstrap 95 % ({RESAMPLES} resamples of the runs, seed fixed). Agent and step are exact "
        "unless said otherwise; a prediction of ours is one place of the log.",
        "- Graph and ranker, and its ablations, are cross-validated: weights are fitted without any run of the same question.",
        f"- Shipped and served rows use the shipped weights, which were trained on {seen} of the {len(cases)} questions here"
        + (": those rows are not held out." if seen else "."),
    ]
    notes += [f"- {m.name}: {m.note}." for m in methods if m.note]
    for method in methods:
        if method.seconds:
            tokens = f", {method.tokens} tokens" if method.tokens else ""
            notes.append(f"- {method.name}: {method.seconds:.1f} s{tokens}, {_calibration(method)}")
    return "\n".join(note.rstrip(", ") for note in notes)


def _calibration(method: Method) -> str:
    if not method.confidences:
        return ""
    said = 100 * sum(method.confidences) / len(method.confidences)
    right = score([o.step for o in method.outcomes]).percent
    return f"mean confidence {said:.1f} % at {right:.1f} % right steps"


def seen_questions(cases: Sequence[Case]) -> int:
    """How many cases ask a question the shipped weights were trained on."""
    known = frozenset(card()["card"]["groups"])
    return sum(case.group in known for case in cases)


def as_json(cases: Sequence[Case], methods: Sequence[Method]) -> str:
    """Every score and every prediction."""
    subsets = list(dict.fromkeys(case.subset for case in cases))
    return json.dumps(
        {
            "runs": len(cases),
            "questions_seen_in_training": seen_questions(cases),
            "methods": [_method(cases, method, subsets) for method in methods],
        },
        indent=1,
    )


def _method(cases: Sequence[Case], method: Method, subsets: Sequence[str]) -> dict[str, Any]:
    by_subset: dict[str, Any] = {}
    for subset in subsets:
        found = scores([o for o, case in zip(method.outcomes, cases, strict=True) if case.subset == subset])
        by_subset[subset] = {
            name: {"percent": s.percent, "low": s.low, "high": s.high} for name, s in found.items()
        }
    return {
        "name": method.name,
        "kind": method.kind,
        "note": method.note,
        "seconds": method.seconds,
        "tokens": method.tokens,
        "subsets": by_subset,
        "predictions": {
            f"{case.subset}/{case.name}": {"agent": guess.agent, "step": guess.step}
            for case, guess in zip(cases, method.guesses, strict=False)
        },
    }
