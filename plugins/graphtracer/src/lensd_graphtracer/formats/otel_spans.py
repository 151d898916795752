"""OpenTelemetry spans of generative AI, as JSON: OTLP (``resourceSpans``) or a list of flat spans.

A step is one model call or tool call: a span with ``gen_ai.output.messages``,
``gen_ai.tool.call.result`` or what earlier versions of the conventions used (the event
``gen_ai.choice``, the attribute ``gen_ai.completion``). Its agent is ``gen_ai.agent.name``
of the span or of its nearest ancestor that has one. Steps are in order of their end.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from lensd_graphtracer.formats.fields import Json, as_list, as_object, as_text, refuse
from lensd_graphtracer.trace import UNNAMED, Kind, Step, Trace, read_speaker

NEEDS = (
    '{"resourceSpans": [{"scopeSpans": [{"spans": [...]}]}]}, or [{"name", "attributes", "start_time", ...}]'
)


@dataclass(frozen=True, slots=True)
class _Span:
    id: str
    parent: str
    started: str
    ended: str
    attributes: Mapping[str, Json]
    events: Sequence[tuple[str, Mapping[str, Json]]]

    def text(self, key: str) -> str:
        value = self.attributes.get(key)
        return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def matches(value: Json) -> bool:
    """Whether ``value`` has the shape of exported spans."""
    if isinstance(value, Mapping):
        return "resourceSpans" in value or "spans" in value
    if not isinstance(value, list) or not value:
        return False
    first = cast("list[Json]", value)[0]
    return isinstance(first, Mapping) and "attributes" in first


def read(value: Json) -> Trace:
    """The trace. Raises InvalidParams when no span holds the output of a model or a tool."""
    spans = sorted(_spans(value), key=lambda span: _time(span.ended or span.started))
    by_id = {span.id: span for span in spans if span.id}
    parents = {span.parent for span in spans}
    steps: list[Step] = []
    for span in spans:
        said = _output(span)
        # An agent's own span repeats what the calls inside it said.
        repeats = span.text("gen_ai.operation.name") == "invoke_agent" and span.id in parents
        if said is None or repeats:
            continue
        agent, kind, to = read_speaker(_agent(span, by_id))
        if (
            span.text("gen_ai.operation.name") == "execute_tool"
            or "gen_ai.tool.call.result" in span.attributes
        ):
            agent, kind = span.text("gen_ai.tool.name") or agent, Kind.TOOL
        steps.append(Step(len(steps), agent, said, kind, to, span.id))
    if not steps:
        raise refuse(
            "trace",
            "no span holds gen_ai.output.messages, gen_ai.tool.call.result, gen_ai.completion or a gen_ai.choice event: "
            "switch on the capture of message content where the spans are made",
        )
    return Trace(task=_task(spans), steps=tuple(steps), format="otel")


def _spans(value: Json) -> Iterator[_Span]:
    if isinstance(value, Mapping):
        log = cast("Mapping[str, Json]", value)
        if "spans" in log:
            yield from _flat(log["spans"], "trace.spans")
            return
        for i, resource in enumerate(as_list(log.get("resourceSpans"), "trace.resourceSpans")):
            at = f"trace.resourceSpans[{i}]"
            for j, scope in enumerate(as_list(as_object(resource, at).get("scopeSpans"), f"{at}.scopeSpans")):
                inner = f"{at}.scopeSpans[{j}]"
                yield from _flat(as_object(scope, inner).get("spans"), f"{inner}.spans")
        return
    yield from _flat(value, "trace")


def _flat(value: Json, path: str) -> Iterator[_Span]:
    for i, entry in enumerate(as_list(value, path)):
        at = f"{path}[{i}]"
        span = as_object(entry, at)
        context = as_object(span.get("context") or {}, f"{at}.context")
        events = as_list(span.get("events") or [], f"{at}.events")
        yield _Span(
            id=str(span.get("spanId") or span.get("span_id") or context.get("span_id") or ""),
            parent=str(span.get("parentSpanId") or span.get("parent_id") or ""),
            started=str(span.get("startTimeUnixNano") or span.get("start_time") or ""),
            ended=str(span.get("endTimeUnixNano") or span.get("end_time") or ""),
            attributes=_attributes(span.get("attributes"), f"{at}.attributes"),
            events=[_event(event, f"{at}.events[{j}]") for j, event in enumerate(events)],
        )


def _event(value: Json, path: str) -> tuple[str, Mapping[str, Json]]:
    event = as_object(value, path)
    return as_text(event.get("name"), f"{path}.name"), _attributes(
        event.get("attributes"), f"{path}.attributes"
    )


def _attributes(value: Json, path: str) -> Mapping[str, Json]:
    """OTLP's list of typed values, or a plain object."""
    if value is None:
        return {}
    if isinstance(value, Mapping):
        return cast("Mapping[str, Json]", value)
    found: dict[str, Json] = {}
    for i, pair in enumerate(as_list(value, path)):
        entry = as_object(pair, f"{path}[{i}]")
        found[as_text(entry.get("key"), f"{path}[{i}].key")] = _untyped(entry.get("value"))
    return found


def _untyped(value: Json) -> Json:
    if not isinstance(value, Mapping):
        return value
    typed = cast("Mapping[str, Json]", value)
    if "arrayValue" in typed:
        return [_untyped(v) for v in cast("Mapping[str, Json]", typed["arrayValue"]).get("values", [])]
    if "kvlistValue" in typed:
        pairs = cast(
            "list[Mapping[str, Json]]", cast("Mapping[str, Json]", typed["kvlistValue"]).get("values", [])
        )
        return {str(pair.get("key")): _untyped(pair.get("value")) for pair in pairs}
    return next(iter(typed.values()), None)


def _time(text: str) -> tuple[int, str]:
    """Nanoseconds sort as numbers, ISO times as text."""
    return (int(text), "") if text.isdecimal() else (0, text)


def _agent(span: _Span, by_id: Mapping[str, _Span]) -> str:
    seen: set[str] = set()
    at: _Span | None = span
    while at is not None and at.id not in seen:
        if name := at.text("gen_ai.agent.name"):
            return name
        seen.add(at.id)
        at = by_id.get(at.parent)
    return UNNAMED


def _output(span: _Span) -> str | None:
    if "gen_ai.tool.call.result" in span.attributes:
        return span.text("gen_ai.tool.call.result")
    for key in ("gen_ai.output.messages", "gen_ai.completion"):
        if key in span.attributes:
            return _message_text(span.attributes[key])
    for name, attributes in span.events:
        if name in ("gen_ai.choice", "gen_ai.content.completion"):
            for key in ("gen_ai.completion", "message", "content", "gen_ai.event.content"):
                if key in attributes:
                    return _message_text(attributes[key])
    return None


def _task(spans: Sequence[_Span]) -> str:
    """The first thing a user asked, in order of start."""
    for span in sorted(spans, key=lambda span: _time(span.started)):
        for key in ("gen_ai.input.messages", "gen_ai.prompt"):
            if key in span.attributes and (said := _message_text(span.attributes[key], role="user")):
                return said
        for name, attributes in span.events:
            if name == "gen_ai.user.message" and "content" in attributes:
                return _message_text(attributes["content"])
    return ""


def _message_text(value: Json, role: str = "") -> str:
    """Text of messages in any of the conventions' shapes; JSON inside text is opened."""
    if isinstance(value, str):
        try:
            inner: Json = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            return value
        return _message_text(inner, role) if isinstance(inner, dict | list) else value
    if isinstance(value, list):
        texts = [_message_text(entry, role) for entry in cast("list[Json]", value)]
        return "\n".join(text for text in texts if text)
    if not isinstance(value, Mapping):
        return "" if value is None else str(value)
    message = cast("Mapping[str, Json]", value)
    if role and message.get("role") not in (None, role):
        return ""
    if message.get("type") == "tool_call":
        return f"{message.get('name')}({json.dumps(message.get('arguments'), ensure_ascii=False)})"
    for key in ("parts", "content", "message", "text", "response", "result"):
        if message.get(key) is not None:
            return _message_text(message[key])
    return ""
