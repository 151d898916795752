"""OpenAI-style chat messages: an array of them, or an object with ``messages``."""

import json
from collections.abc import Mapping
from typing import cast

from lensd_graphtracer.formats.fields import Json, as_list, as_object, as_text, kind, refuse
from lensd_graphtracer.trace import Kind, Step, Trace, read_speaker

NEEDS = (
    '[{"role": text, "content": text or parts, "name": text?, "tool_calls": [...]?}], or {"messages": [...]}'
)
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def matches(value: Json) -> bool:
    """Whether ``value`` has the shape of a conversation."""
    if isinstance(value, Mapping):
        return "messages" in value
    if not isinstance(value, list) or not value:
        return False
    first = cast("list[Json]", value)[0]
    return isinstance(first, Mapping) and "role" in first


def read(value: Json) -> Trace:
    """The trace; its task is the first user message. Raises InvalidParams for what is malformed."""
    if isinstance(value, Mapping):
        root = "trace.messages"
        messages = as_list(cast("Mapping[str, Json]", value).get("messages"), root)
    else:
        root, messages = "trace", as_list(value, "trace")
    callers: dict[str, str] = {}
    steps = tuple(_step(i, entry, f"{root}[{i}]", callers) for i, entry in enumerate(messages))
    asked = (step.content for step in steps if step.kind is Kind.ASK)
    return Trace(task=next(asked, ""), steps=steps, format="openai")


def _step(index: int, value: Json, path: str, tools: dict[str, str]) -> Step:
    entry = as_object(value, path)
    role = as_text(entry.get("role"), f"{path}.role")
    if role not in _ROLES:
        raise refuse(f"{path}.role", f"must be one of {', '.join(_ROLES)}, not {role!r}")
    name = as_text(entry.get("name"), f"{path}.name")
    content = text_of(entry.get("content"), f"{path}.content")
    calls = _calls(entry.get("tool_calls"), f"{path}.tool_calls", tools)
    if calls:
        content = "\n".join(part for part in (content, *calls) if part)
    if role in ("tool", "function"):
        called = tools.get(as_text(entry.get("tool_call_id"), f"{path}.tool_call_id"), "")
        return Step(index, name or called or role, content, Kind.TOOL)
    if role == "user":
        # A named user is an agent that speaks through the same interface.
        agent, sort, to = read_speaker(name or role)
        return Step(index, agent, content, sort, to)
    if role != "assistant":
        return Step(index, role, content, Kind.CONTROL)
    agent, sort, to = read_speaker(name or role)
    return Step(index, agent, content, sort, to)


def _calls(value: Json, path: str, tools: dict[str, str]) -> list[str]:
    if value is None:
        return []
    said: list[str] = []
    for i, call in enumerate(as_list(value, path)):
        entry = as_object(call, f"{path}[{i}]")
        function = as_object(entry.get("function"), f"{path}[{i}].function")
        name = as_text(function.get("name"), f"{path}[{i}].function.name")
        arguments = function.get("arguments")
        shown = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        tools[as_text(entry.get("id"), f"{path}[{i}].id")] = name
        said.append(f"{name}({shown})")
    return said


def text_of(value: Json, path: str) -> str:
    """Content as text: a string, or the text of its parts, what is not text named in brackets."""
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise refuse(path, f"must be text or an array of parts, not {kind(value)}")
    parts: list[str] = []
    for i, part in enumerate(cast("list[Json]", value)):
        entry = as_object(part, f"{path}[{i}]")
        sort = as_text(entry.get("type"), f"{path}[{i}].type")
        given = entry.get("text", entry.get("refusal"))
        parts.append(given if isinstance(given, str) else f"[{sort or 'part'}]")
    return "\n".join(parts)
