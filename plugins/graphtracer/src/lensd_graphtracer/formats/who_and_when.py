"""Files of the Who&When benchmark, both subsets (arXiv 2505.00212).

Agents are in ``name`` (algorithm-generated) or in ``role`` (hand-crafted). The labels
``mistake_agent``, ``mistake_step`` and ``mistake_reason`` are never looked at.
"""

from collections.abc import Mapping

from lensd_graphtracer.formats.fields import Json, as_answer, as_list, as_object, as_text
from lensd_graphtracer.trace import Step, Trace, read_speaker

NEEDS = '{"question": text, "history": [{"content": text, "name" or "role": text}]}'


def matches(value: Json) -> bool:
    """Whether ``value`` has the shape of such a file."""
    return isinstance(value, Mapping) and "history" in value


def read(value: Json) -> Trace:
    """The trace of a file. Raises InvalidParams for what is malformed."""
    log = as_object(value, "trace")
    entries = as_list(log.get("history"), "trace.history")
    return Trace(
        task=as_text(log.get("question"), "trace.question"),
        steps=tuple(_step(i, entry) for i, entry in enumerate(entries)),
        format="who_and_when",
        right_answer=as_answer(log.get("ground_truth"), "trace.ground_truth"),
    )


def _step(index: int, value: Json) -> Step:
    path = f"trace.history[{index}]"
    entry = as_object(value, path)
    named = as_text(entry.get("name"), f"{path}.name") or as_text(entry.get("role"), f"{path}.role")
    agent, kind, to = read_speaker(named)
    return Step(index, agent, as_text(entry.get("content"), f"{path}.content"), kind, to)
