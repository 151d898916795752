"""The plain form: what to write when a log has no format of its own."""

from collections.abc import Mapping

from lensd_graphtracer.formats.fields import Json, as_answer, as_list, as_object, as_text, refuse
from lensd_graphtracer.trace import Kind, Step, Trace, read_speaker

NEEDS = '{"task": text, "steps": [{"agent": text, "content": text, "to": text?, "tool": boolean?}]}'
_FIELDS = ("task", "steps", "right_answer", "final_answer")
_STEP_FIELDS = ("agent", "content", "to", "tool")


def matches(value: Json) -> bool:
    """Whether ``value`` has the shape of the plain form."""
    return isinstance(value, Mapping) and "steps" in value


def read(value: Json) -> Trace:
    """The trace. Raises InvalidParams for what is malformed or not part of the form."""
    log = as_object(value, "trace")
    for name in log:
        if name not in _FIELDS:
            raise refuse(f"trace.{name}", f"the plain form has only {', '.join(_FIELDS)}")
    entries = as_list(log.get("steps"), "trace.steps")
    return Trace(
        task=as_text(log.get("task"), "trace.task"),
        steps=tuple(_step(i, entry) for i, entry in enumerate(entries)),
        format="plain",
        right_answer=as_answer(log.get("right_answer"), "trace.right_answer"),
        final_answer=as_answer(log.get("final_answer"), "trace.final_answer"),
    )


def _step(index: int, value: Json) -> Step:
    path = f"trace.steps[{index}]"
    entry = as_object(value, path)
    for name in entry:
        if name not in _STEP_FIELDS:
            raise refuse(f"{path}.{name}", f"a step has only {', '.join(_STEP_FIELDS)}")
    agent, kind, to = read_speaker(as_text(entry.get("agent"), f"{path}.agent"))
    if addressed := as_text(entry.get("to"), f"{path}.to"):
        kind, to = Kind.INSTRUCTION, addressed
    tool = entry.get("tool")
    if tool is not None and not isinstance(tool, bool):
        raise refuse(f"{path}.tool", "must be true or false: whether the step is a tool's output")
    if tool is not None:
        kind = Kind.TOOL if tool else (Kind.MESSAGE if kind is Kind.TOOL else kind)
    return Step(index, agent, as_text(entry.get("content"), f"{path}.content"), kind, to)
