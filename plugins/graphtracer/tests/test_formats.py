"""Every format becomes the same steps, and what is no log is refused with its place."""

import json
from typing import Any

import pytest

from lensd_api import InvalidParams, TooLarge
from lensd_graphtracer.formats import MAX_STEPS, read_trace
from lensd_graphtracer.trace import Kind, read_speaker
from plugins.graphtracer.tests.logs import plain


@pytest.mark.parametrize(
    ("raw", "agent", "kind", "to"),
    [
        ("Orchestrator (thought)", "Orchestrator", Kind.THOUGHT, ""),
        ("Orchestrator (-> WebSurfer)", "Orchestrator", Kind.INSTRUCTION, "WebSurfer"),
        ("Orchestrator (termination condition)", "Orchestrator", Kind.CONTROL, ""),
        ("Computer_terminal", "Computer_terminal", Kind.TOOL, ""),
        ("human", "human", Kind.ASK, ""),
        ("  Statistics_Expert ", "Statistics_Expert", Kind.MESSAGE, ""),
        ("", "(unnamed)", Kind.MESSAGE, ""),
    ],
)
def test_speakers_are_normalised(raw: str, agent: str, kind: Kind, to: str) -> None:
    assert read_speaker(raw) == (agent, kind, to)


def test_both_subsets_of_the_benchmark_are_read() -> None:
    generated = {
        "question": "Q",
        "ground_truth": 8,
        "history": [{"content": "a", "role": "assistant", "name": "Expert"}],
    }
    crafted = {"question": "Q", "history": [{"content": "a", "role": "Orchestrator (-> Coder)"}]}
    one, other = read_trace(generated), read_trace(crafted)
    assert (one.steps[0].agent, one.right_answer, one.task) == ("Expert", "8", "Q")
    assert (other.steps[0].agent, other.steps[0].to, other.right_answer) == ("Orchestrator", "Coder", None)


def test_the_plain_form_takes_addresses_and_tools() -> None:
    log = {
        "task": "t",
        "steps": [{"agent": "A", "content": "go", "to": "B"}, {"agent": "B", "content": "x", "tool": True}],
    }
    assert [(s.kind, s.to) for s in read_trace(log).steps] == [(Kind.INSTRUCTION, "B"), (Kind.TOOL, "")]


def test_openai_messages_name_their_tools() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "search", "arguments": '{"q": "museum"}'}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "Prices?"}, {"type": "image_url", "image_url": {}}],
        },
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "12.50"},
        {"role": "assistant", "name": "Writer", "content": "It is 12.50."},
    ]
    for log in (messages, {"messages": messages}):
        trace = read_trace(log)
        assert [s.agent for s in trace.steps] == ["system", "user", "assistant", "search", "Writer"]
        assert trace.steps[2].content == 'search({"q": "museum"})'
        assert trace.task == "Prices?\n[image_url]"
        assert trace.steps[3].kind is Kind.TOOL


def _otlp(*spans: dict[str, Any]) -> dict[str, Any]:
    return {"resourceSpans": [{"scopeSpans": [{"spans": list(spans)}]}]}


def _typed(**values: Any) -> list[dict[str, Any]]:
    return [{"key": k.replace("__", "."), "value": {"stringValue": v}} for k, v in values.items()]


def test_spans_are_ordered_by_their_end_and_take_the_agent_of_an_ancestor() -> None:
    said = json.dumps([{"role": "assistant", "parts": [{"type": "text", "content": "It is 12.50."}]}])
    asked = json.dumps([{"role": "user", "parts": [{"type": "text", "content": "Prices?"}]}])
    trace = read_trace(
        _otlp(
            {"spanId": "1", "startTimeUnixNano": "1", "endTimeUnixNano": "9", "attributes": _typed(gen_ai__operation__name="invoke_agent", gen_ai__agent__name="Writer", gen_ai__output__messages=said)},
            {"spanId": "3", "parentSpanId": "1", "startTimeUnixNano": "5", "endTimeUnixNano": "8", "attributes": _typed(gen_ai__operation__name="chat", gen_ai__output__messages=said, gen_ai__input__messages=asked)},
            {"spanId": "2", "parentSpanId": "1", "startTimeUnixNano": "2", "endTimeUnixNano": "4", "attributes": _typed(gen_ai__operation__name="execute_tool", gen_ai__tool__name="search", gen_ai__tool__call__result="12.50")},
        )
    )  # fmt: skip
    assert [(s.agent, s.content, s.kind, s.ref) for s in trace.steps] == [
        ("search", "12.50", Kind.TOOL, "2"),
        ("Writer", "It is 12.50.", Kind.MESSAGE, "3"),
    ]
    assert trace.task == "Prices?"


def test_flat_spans_with_events_of_earlier_conventions_are_read() -> None:
    event = {"name": "gen_ai.choice", "attributes": {"message": '{"content": "done", "role": "assistant"}'}}
    spans = [{"name": "chat", "context": {"span_id": "a"}, "attributes": {"gen_ai.agent.name": "A"}, "events": [event], "end_time": "2026-01-01T00:00:00Z"}]  # fmt: skip
    assert [(s.agent, s.content) for s in read_trace(spans).steps] == [("A", "done")]


def test_spans_without_content_are_refused_with_the_remedy() -> None:
    with pytest.raises(InvalidParams, match="capture of message content"):
        read_trace(_otlp({"spanId": "1", "attributes": _typed(gen_ai__operation__name="chat")}))


@pytest.mark.parametrize("junk", [{}, {"a": 1}, [], [1, 2], ["\x00\x01"], {"history": [], "steps": []}])
def test_an_unknown_format_is_refused_with_what_is_known(junk: Any) -> None:
    with pytest.raises(InvalidParams) as refused:
        read_trace(junk)
    assert refused.value.reason == "UNKNOWN_TRACE_FORMAT"
    assert refused.value.violations[0].field == "trace"


@pytest.mark.parametrize(
    ("log", "place"),
    [
        ({"question": "Q", "history": {}}, "trace.history"),
        ({"question": "Q", "history": [{"content": "a", "name": "A"}, 7]}, "trace.history[1]"),
        ({"question": "Q", "history": [{"content": 5, "name": "A"}]}, "trace.history[0].content"),
        ({"question": ["Q"], "history": []}, "trace.question"),
        ({"task": "t", "steps": [{"agent": "A", "content": "x", "tool": "yes"}]}, "trace.steps[0].tool"),
        ({"task": "t", "steps": [{"agent": "A", "content": "x", "said": 1}]}, "trace.steps[0].said"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "trace.messages[0].role"),
        ({"messages": [{"role": "user", "content": 3}]}, "trace.messages[0].content"),
        ({"resourceSpans": [{"scopeSpans": 4}]}, "trace.resourceSpans[0].scopeSpans"),
        (plain(("A", " "), ("B", "")), "trace"),
    ],
)
def test_a_fault_is_reported_with_its_place(log: Any, place: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        read_trace(log)
    assert [v.field for v in refused.value.violations] == [place]
    assert refused.value.reason == "BAD_TRACE"


def test_too_many_steps_are_refused() -> None:
    with pytest.raises(TooLarge, match=str(MAX_STEPS)):
        read_trace(plain(*[("A", "x")] * (MAX_STEPS + 1)))
