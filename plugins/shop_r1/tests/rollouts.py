"""Rollouts short enough for the tiny models, and the strings they are made of."""

import json
from typing import Any


def output(rationale: str, kind: str, **fields: Any) -> str:
    """A well-formed output."""
    return json.dumps({"rationale": rationale, "action": {"type": kind, **fields}})


def rollout(said: str, kind: str, **fields: Any) -> dict[str, Any]:
    """An item whose reference is of type ``kind``."""
    return {"context": "Buy it:", "output": said, "reference": {"type": kind, **fields}}


#: One of each kind, malformed and failing ones too.
MIXED: list[dict[str, Any]] = [
    rollout(output("I need it", "click", name="buy"), "click", name="buy"),
    rollout(output("two", "type_and_submit", name="box", text="tea"), "type_and_submit", name="box", text="tea"),
    rollout(output("", "terminate"), "terminate"),
    rollout("no", "terminate"),
    rollout(output("One, two, three, four " * 40, "click", name="buy"), "click", name="buy"),
    {"context": "Buy it:", "output": "no", "reference": {"type": "scroll"}},
    rollout(output("done", "terminate"), "click", name="buy"),
]  # fmt: skip
