"""What an analyzer yields is looked at before it is handed on: it can be carried, and adds up."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lensd_api import InvalidParams, InvalidResult
from lensd_api.results import Edge, Graph, ItemError, Node, Record, Result, Span, Table, Tensor, Text
from lensd_server.engine.events import Completed, Usage
from lensd_server.engine.soundness import ResultCheck, takes_long
from lensd_server.rpc.convert import EventWriter
from lensd_server.settings import LimitSettings

LIMITS = LimitSettings()
BIG = "x" * 2_000_000


def new_check(limits: LimitSettings = LIMITS) -> ResultCheck:
    return ResultCheck("a", message_bytes=limits.max_response_bytes, part_bytes=limits.max_part_bytes)


def check_all(*results: Result) -> list[Result]:
    check = new_check()
    checked = [check.found(result).result for result in results]
    check.finish()
    return checked


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        (Table("t", {"a": [1], "b": [1, 2]}), "differ in length: 'a' 1, 'b' 2"),
        (Table("t", {"a": [1, "x"]}), "column 'a' cannot carry int, str"),
        (Table("t", {"a": [True, 1]}), "mixes truth values with int"),
        (Table("t", {"a": [object()]}), "object"),
        (Table("t", {"a": "text"}), "not a sequence"),
        (Table("t", {"a": {1, 2}}), "not a sequence"),
        (Table("t", {"a": 3}), "not a sequence"),
        (Table("t", {"a": np.float64(1)}), "single value"),
        (Table("t", {"a": np.zeros((2, 2))}), "2 dimensions"),
        (Table("t", {"a": torch.tensor(1.0)}), "0 dimensions"),
        (Table("t", {"a": [2**63]}), "beyond 64 bits"),
        (Table("t", {"a": [0.5, -(10**400)]}), "beyond 64 bits"),
        (Table("t", {"a": np.array([2**63], dtype=np.uint64)}), "beyond 64 bits"),
        (Table("t", {"a": np.zeros(2, dtype=complex)}), "complex"),
        (Table("t", {"a": ["\ud800"]}), "surrogate"),
        (Table("t", {1: [1]}), "name of a column is a int"),  # pyright: ignore[reportArgumentType]
        (Table("t", {"a": [1]}, units={"b": "s"}), "'b', which is no column"),
        (Table("t", {"a": [1]}, units={"a": 3}), "unit of column 'a' is a int"),  # pyright: ignore[reportArgumentType]
        (Table("t", [1]), "columns are a list"),  # pyright: ignore[reportArgumentType]
        (Table("t", {"a": ["", BIG]}), "row 1 alone"),
        (Table("t", {BIG: [1]}), "alone"),
        (Table("", {"a": [1]}), "has no name"),
        (Table("t", {"a": [1]}, title=BIG), "name, title and item"),
        (Tensor("x", np.zeros(2, dtype=complex)), "complex128"),
        (Tensor("x", torch.zeros(2, dtype=torch.complex64)), "complex64"),
        (Tensor("x", np.zeros((1,) * 9)), "9 dimensions"),
        (Tensor("x", [[1], [1, 2]]), "differ in length"),
        (Tensor("x", np.zeros(2), axes=("a", "b")), "2 axes for 1"),
        (Tensor("x", np.zeros(2), axes=("a",), labels={"a": ["one"]}), "1 labels"),
        (Tensor("x", np.zeros(2), labels={"a": ["one"]}), "not one of its axes"),
        (Record("r", {"a": BIG}), "put large values into a table"),
        (Record("r", {"a": [{}, {"b": 2**60}]}), r"a\[1\].b is beyond 2\^53"),
        (Record("r", [1]), "values are a list"),  # pyright: ignore[reportArgumentType]
        (Text("t", BIG, []), "put large values into a table"),
        (Text("t", "abc", [Span(1, 4, 0.5)]), "not within its text of 3"),
        (Text("t", "abc", [Span(2, 1, 0.5)]), "not within its text"),
        (Text("t", "abc", [Span(-1, 1, 0.5)]), "not within its text"),
        (Text("t", "abc", [Span(0.5, 1, 0.5)]), "whole numbers"),  # pyright: ignore[reportArgumentType]
        (Graph("g", [Node("n", {"a": BIG})], []), "node 'n' alone needs"),
        (Graph("g", [Node("n"), Node("n")], []), "two nodes 'n'"),
        (Graph("g", [Node("n")], [Edge("n", "m")]), "'m', which is no node"),
        (Graph("g", [Node("n", {"a": object()})], []), "node 'n': a is a object"),
        (ItemError("e", ValueError("no")), "LensdError"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_what_no_caller_could_read_is_refused_by_name(result: Any, complaint: str) -> None:
    with pytest.raises(InvalidResult, match=complaint) as refused:
        new_check().found(result)
    assert refused.value.metadata == {"analyzer": "a", "result": repr(result.name)}
    assert len(refused.value.message) < 1000


@pytest.mark.parametrize(
    ("first", "second", "complaint"),
    [
        (
            Table("t", {"a": [1]}, last=False),
            Table("t", {"b": [1]}),
            "columns 'b' in this part and 'a' before",
        ),
        (Table("t", {"a": [1], "b": [1]}, last=False), Table("t", {"b": [1], "a": [1]}), "columns"),
        (Table("t", {"a": [1]}, last=False), Table("t", {"a": ["x"]}), "strings in this part and integers"),
        (Table("t", {"a": [1]}, last=False), Graph("t", [], []), "began as a table"),
        (Table("t", {"a": [1]}, last=False), Record("t", {}), "began as a table"),
        (Graph("t", [Node("n")], [], last=False), Graph("t", [Node("n")], []), "two nodes"),
        (Graph("t", [], [Edge("n", "m")], last=False), Graph("t", [Node("n")], []), "'m', which is no node"),
        (Record("t", {}), Record("t", {}), "complete already"),
        (ItemError("t", InvalidParams("no")), Record("t", {}), "complete already"),
    ],
)
def test_parts_that_do_not_join_up_are_refused(first: Any, second: Any, complaint: str) -> None:
    check = new_check()
    check.found(first)
    with pytest.raises(InvalidResult, match=complaint):
        check.found(second)


def test_parts_that_join_up_pass() -> None:
    check_all(
        Table("t", {"a": [None], "b": [1]}, last=False),
        Table("t", {"a": ["x"], "b": [0.5]}, last=False),
        Table("t", {"a": [], "b": []}),
        Graph("g", [Node("n")], [], last=False),
        Graph("g", [Node("m")], [Edge("n", "m")]),
        Graph("edges first", [], [Edge("n", "m"), Edge("m", "n")], last=False),
        Graph("edges first", [Node("n"), Node("m")], []),
        Table("half", {"a": [1]}, item="1", last=False),
        ItemError("half", InvalidParams("this item failed after all"), item="1"),
    )


def test_a_result_left_open_is_not_complete() -> None:
    with pytest.raises(InvalidResult, match="without a last part"):
        check_all(Table("t", {"a": [1]}, last=False))


def test_what_is_handed_on_does_not_change_with_the_authors_lists() -> None:
    values, record = [1, 2], {"a": [1]}
    table, kept = check_all(Table("t", {"a": values}), Record("r", record))
    values.append(3)
    record["a"].append(2)
    assert isinstance(table, Table)
    assert isinstance(kept, Record)
    assert (list(table.columns["a"]), kept.values) == ([1, 2], {"a": [1]})


@pytest.mark.parametrize(
    "data",
    [np.zeros(4), np.zeros(8)[::2], torch.zeros(4), torch.zeros(4, dtype=torch.bfloat16), [0, 0, 0, 0]],
)
def test_what_is_handed_on_does_not_change_with_the_authors_buffers(data: Any) -> None:
    table, tensor = check_all(Table("t", {"x": data}), Tensor("u", data))
    for i in range(4):
        data[i] = 7
    assert isinstance(table, Table)
    assert isinstance(tensor, Tensor)
    assert list(table.columns["x"]) == tensor.data.tolist() == [0] * 4


def test_it_is_known_what_a_result_occupies() -> None:
    check = new_check()
    assert check.found(Tensor("x", np.zeros(1000))).size_bytes == 8000
    assert check.found(Table("t", {"a": np.zeros(1000), "b": [1] * 1000})).size_bytes >= 16_000
    assert check.found(Table("s", {"a": ["x" * 1000] * 10})).size_bytes >= 10_000
    assert check.found(Graph("g", [Node("n", {"a": "x" * 500})], [])).size_bytes >= 500


def test_long_results_are_known_for_what_they_are() -> None:
    assert takes_long(Table("t", {"a": [0] * 10_000}))
    assert takes_long(Tensor("x", np.zeros(2_000_000)))
    assert not takes_long(Tensor("x", [0.0] * 100))
    assert takes_long(Graph("g", [Node(str(i)) for i in range(10_000)], []))
    assert not takes_long(Record("r", {}))
    assert not takes_long(Table("t", {"a": 3}))  # pyright: ignore[reportArgumentType]


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=50)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)
TABLES = st.builds(
    Table,
    st.sampled_from("ab"),
    st.dictionaries(
        st.text(max_size=3),
        st.lists(st.none() | st.integers(-(2**64), 2**64) | st.floats(), max_size=4)
        | st.lists(st.none() | st.text(), max_size=4)
        | st.lists(SCALARS, max_size=4),
        max_size=3,
    ),
    last=st.booleans(),
)
NAMES = st.sampled_from(["x", "y", ""])
GRAPHS = st.builds(
    Graph,
    st.sampled_from("gh"),
    st.lists(st.builds(Node, NAMES, st.dictionaries(st.text(), VALUES, max_size=2)), max_size=3),
    st.lists(st.builds(Edge, NAMES, NAMES), max_size=3),
    last=st.booleans(),
)
RECORDS = st.builds(Record, st.sampled_from("rs"), st.dictionaries(st.text(), VALUES, max_size=3))
TEXTS = st.builds(
    Text,
    st.sampled_from("tu"),
    st.text(max_size=5),
    st.lists(st.builds(Span, st.integers(-1, 6), st.integers(-1, 6), st.floats()), max_size=3),
)


@settings(deadline=None)
@given(st.lists(TABLES | GRAPHS | RECORDS | TEXTS, max_size=4))
def test_whatever_passes_becomes_messages(results: list[Result]) -> None:
    check, writer = new_check(), EventWriter("r", LIMITS.max_part_bytes)
    try:
        events = [check.found(result) for result in results]
        check.finish()
    except InvalidResult:
        return
    for event in (*events, Completed("", Usage())):
        for message in writer.messages(event):
            assert len(message.SerializeToString()) <= LIMITS.max_response_bytes


@settings(deadline=None, max_examples=30)
@given(
    st.lists(st.none() | st.text(max_size=3000), max_size=300),
    st.lists(st.integers(1, 9), min_size=1, max_size=40),
    st.integers(64 * 1024, 128 * 1024),
)
def test_no_message_of_what_passes_is_too_large(texts: list[Any], sizes: list[int], limit: int) -> None:
    limits = LimitSettings(max_response_bytes=limit)
    check, writer = new_check(limits), EventWriter("r", limits.max_part_bytes)
    labels = {"n": ["l" * 1000 * size for size in sizes]}
    results: list[Result] = [
        Table("t" * 4000, {"s": texts, "n": [math.nan] * len(texts)}, title="T" * 3000),
        Tensor("x", np.zeros((len(sizes), 9000)), axes=("n", "m"), labels=labels),
        Record("r", {"a": texts[:20]}),
        Graph("g", [Node(str(i), {"t": value}) for i, value in enumerate(texts)], []),
    ]
    for result in results:
        try:
            event = check.found(result)
        except InvalidResult:
            continue
        assert all(message.ByteSize() <= limit for message in writer.messages(event))
