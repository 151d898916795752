"""What is asked: kinds of analysis by name, how often each, and how long its prompt is."""

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import exp, log
from typing import Any

from tests.bench.load.subject import Subject

Params = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ask:
    """One analysis. ``model`` is empty where none is needed."""

    kind: str
    analyzer: str
    model: str
    params: Params


@dataclass(frozen=True, slots=True)
class Lengths:
    """Prompt lengths in tokens, from ``low`` to ``high``, every factor of two as likely as the next."""

    low: int
    high: int

    def draw(self, source: random.Random) -> int:
        """One length."""
        return min(self.high, int(exp(source.uniform(log(self.low), log(self.high + 1)))))

    @classmethod
    def parse(cls, text: str) -> "Lengths":
        """``14`` or ``8-512``. Raises ValueError."""
        low, _, high = text.partition("-")
        found = cls(int(low), int(high or low))
        if not 1 <= found.low <= found.high:
            raise ValueError(f"lengths are LOW-HIGH with 1 <= LOW <= HIGH, not {text!r}")
        return found


def _dla(**more: Any) -> Callable[[str, random.Random], Params]:
    return lambda text, _: {"prompt": text, **more}


def _rollout(**more: Any) -> Callable[[str, random.Random], Params]:
    def params(text: str, draw: random.Random) -> Params:
        reference = {"type": "click", "name": draw.choice(("buy", "filter", "next"))}
        output = json.dumps({"rationale": text, "action": reference})
        item = {"context": "What next?", "output": output, "reference": reference}
        return {"items": [item], **more}

    return params


def _log(text: str, draw: random.Random) -> Params:
    """A multi-agent log whose later steps repeat a number of an earlier one."""
    steps: list[dict[str, str]] = []
    for index, start in enumerate(range(0, len(text), 60)):
        code = draw.randint(10_000, 99_999) if index % 3 == 0 else ""
        steps.append({"agent": f"agent{index % 4}", "content": f"{text[start : start + 60]} {code}".strip()})
    return {"trace": {"task": "Find the code.", "steps": steps}}


def _invalid(text: str, _: random.Random) -> Params:
    return {"prompt": text, "no_such_parameter": True}


#: name -> analyzer, whether it needs the model, parameters for a text.
KINDS: Mapping[str, tuple[str, bool, Callable[[str, random.Random], Params]]] = {
    "dla:block": ("dla", True, _dla(unit="block")),
    "dla:component": ("dla", True, _dla(unit="component")),
    "dla:head": ("dla", True, _dla(unit="head")),
    "dla:neuron": ("dla", True, _dla(unit="neuron")),
    "dla:lens": ("dla", True, _dla(unit="component", lens=True)),
    "shop-r1": ("shop-r1", True, _rollout()),
    "shop-r1:parse": ("shop-r1", False, _rollout(self_certainty="off")),
    "statistics": ("shop-r1", True, _rollout(self_certainty="off", logprobs=True)),
    "graphtracer": ("graphtracer", False, _log),
    "invalid": ("dla", True, _invalid),
}

#: Everything a caller might send, most of it what most would.
USUAL = {
    "dla:head": 4.0,
    "dla:component": 2.0,
    "dla:block": 1.0,
    "dla:lens": 1.0,
    "dla:neuron": 0.5,
    "shop-r1": 2.0,
    "statistics": 1.0,
    "shop-r1:parse": 1.0,
    "graphtracer": 1.0,
    "invalid": 0.25,
}


def parse_mix(text: str) -> dict[str, float]:
    """``dla:head=4,shop-r1=1``; a name without a number counts once. Raises ValueError."""
    mix: dict[str, float] = {}
    for part in text.split(","):
        name, _, weight = part.strip().partition("=")
        if name not in KINDS:
            raise ValueError(f"no kind {name!r}; kinds are {', '.join(KINDS)}")
        mix[name] = float(weight or 1)
    return mix


def ask(kind: str, subject: Subject, tokens: int, draw: random.Random) -> Ask:
    """One analysis of ``kind`` with a prompt of about ``tokens`` tokens."""
    analyzer, needs_model, params = KINDS[kind]
    model = subject.model if needs_model else ""
    return Ask(kind, analyzer, model, params(subject.text(tokens, draw), draw))
