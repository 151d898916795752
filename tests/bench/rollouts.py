"""Rollouts like a trainer's: eight outputs a prompt, each with a rationale of about two hundred tokens."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from tests.bench.prompts import distinct_prompts

#: Outputs sampled for one prompt.
A_PROMPT = 8
_CONTEXT_WORDS, _RATIONALE_WORDS = 80, 198
_REFERENCE = {"type": "click", "name": "buy"}


@dataclass(frozen=True, slots=True)
class Rollout:
    """One prompt and one of its outputs; ``rationale`` is the part of it that is judged."""

    context: str
    output: str
    rationale: str

    @property
    def reference(self) -> dict[str, str]:
        """The true action: always the same, as it costs nothing."""
        return _REFERENCE


def rollouts(seed: int) -> Iterator[Rollout]:
    """Endless rollouts, those of one prompt after one another."""
    contexts, rationales = (
        distinct_prompts(_CONTEXT_WORDS, seed),
        distinct_prompts(_RATIONALE_WORDS, seed + 1),
    )
    for context in contexts:
        for rationale in islice(rationales, A_PROMPT):
            output = json.dumps({"rationale": rationale, "action": _REFERENCE})
            yield Rollout(context, output, rationale)
