"""Results of any size become messages of at most 1 MiB that add up to the same."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import json_format
from hypothesis import given, settings
from hypothesis import strategies as st

from lensd_api.errors import InvalidParams
from lensd_api.results import Edge, Graph, ItemError, Node, Record, Span, Table, Tensor, Text
from lensd_proto.v1 import analysis_pb2, results_pb2
from lensd_server.engine.events import Completed, Found, Progress, Usage, Warned
from lensd_server.engine.soundness import ResultCheck
from lensd_server.rpc.convert import EventWriter
from lensd_server.rpc.tensors import decode
from lensd_server.settings import LimitSettings

LIMIT = 1024 * 1024
Response = analysis_pb2.AnalyzeResponse


def sent(*events: Any, limit: int = LIMIT) -> list[Response]:
    """What the events become on the wire, with what holds of every stream checked."""
    parts = LimitSettings(max_response_bytes=limit).max_part_bytes
    writer, check = EventWriter("r1", parts), ResultCheck("a", message_bytes=limit, part_bytes=parts)
    checked = [check.found(event.result) if isinstance(event, Found) else event for event in events]
    messages = [m for event in (*checked, Completed("rev", Usage())) for m in writer.messages(event)]
    assert [m.sequence for m in messages] == list(range(len(messages)))
    assert all(m.request_id == "r1" and m.ByteSize() <= limit for m in messages)
    assert messages[-1].completed.events == len(messages)
    return [Response.FromString(m.SerializeToString()) for m in messages[:-1]]


def results(*found: Any) -> list[results_pb2.Result]:
    return [m.result for m in sent(*map(Found, found)) if m.HasField("result")]


def column(parts: Sequence[results_pb2.Result], index: int) -> list[Any]:
    """The values of a column over all parts, nulls restored."""
    values: list[Any] = []
    for part in parts:
        message = part.table.columns[index]
        kind = message.WhichOneof("values")
        here = list(getattr(message, kind).values)
        for row in message.null_rows:
            here[row] = None
        values += here
    return values


def test_a_small_table_is_one_message_with_types_units_and_nulls() -> None:
    table = Table(
        "t",
        {
            "layer": np.arange(3),
            "value": torch.tensor([0.5, float("nan"), 2.0], dtype=torch.bfloat16),
            "token": [" a", None, "ß"],
            "on": np.array([True, False, True]),
            "maybe": [1.5, None, 2],
        },
        units={"value": "logit"},
        title="T",
        item="0",
    )
    (result,) = results(table)
    assert (result.name, result.title, result.item, result.part, result.last) == ("t", "T", "0", 0, True)
    kinds = [c.WhichOneof("values") for c in result.table.columns]
    assert kinds == ["integers", "doubles", "strings", "bools", "doubles"]
    assert result.table.columns[1].unit == "logit"
    assert column([result], 2) == [" a", None, "ß"]
    assert column([result], 4) == [1.5, None, 2.0]
    assert np.isnan(column([result], 1)[1])


def test_a_table_without_rows_is_still_sent() -> None:
    (result,) = results(Table("t", {"a": []}))
    assert result.last
    assert len(result.table.columns) == 1


def test_a_large_table_arrives_whole_in_parts() -> None:
    rows = 200_000
    numbers, texts = np.arange(rows), [("x" * (i % 40)) if i % 7 else None for i in range(rows)]
    parts = results(Table("t", {"n": numbers, "f": numbers / 3, "s": texts}))
    assert len(parts) > 5
    assert [p.part for p in parts] == list(range(len(parts)))
    assert [p.last for p in parts] == [False] * (len(parts) - 1) + [True]
    assert column(parts, 0) == list(range(rows))
    assert column(parts, 1) == (numbers / 3).tolist()
    assert column(parts, 2) == texts


def test_parts_go_on_counting_over_several_tables_of_one_item() -> None:
    big = {"s": ["x" * 1000] * 1500}
    parts = results(Table("t", big, item="a", last=False), Table("t", {"s": ["y"]}, item="a"))
    assert [p.part for p in parts] == list(range(len(parts)))
    assert [p.last for p in parts] == [False] * (len(parts) - 1) + [True]
    assert column(parts, 0) == [*big["s"], "y"]


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.none() | st.text(max_size=3000), max_size=300),
    st.integers(64 * 1024, 256 * 1024),
)
def test_any_table_of_text_arrives_whole_below_the_limit(texts: list[str | None], limit: int) -> None:
    messages = sent(Found(Table("t", {"s": texts})), limit=limit)
    assert column([m.result for m in messages], 0) == texts


def test_a_small_tensor_travels_inside_its_message() -> None:
    data = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    tensor = Tensor("h", data, axes=("layer", "head"), labels={"head": ["a", "b", "c"]}, unit="logit")
    (result,) = results(tensor)
    assert result.last
    assert [(a.name, list(a.labels)) for a in result.tensor.axes] == [
        ("layer", []),
        ("head", ["a", "b", "c"]),
    ]
    assert torch.equal(decode("h", result.tensor), data)


@pytest.mark.parametrize(
    "data",
    [
        torch.randn(3, 4, dtype=torch.bfloat16),
        torch.randn(3, 4).half(),
        torch.randn(4, 3).t(),
        torch.tensor(3.5),
        torch.zeros(0, 5),
        torch.tensor([True, False]),
        torch.arange(4, dtype=torch.uint8),
        torch.arange(4),
        torch.randn(3, requires_grad=True),
        torch.randn(3, dtype=torch.complex64).conj().imag,
        np.arange(4, dtype=">i4"),
        np.float64(2.5),
        [[1, 2], [3, 4]],
    ],
    ids=lambda data: f"{getattr(data, 'dtype', 'list')}{getattr(data, 'shape', '')}",
)
def test_every_kind_of_array_survives_the_wire(data: Any) -> None:
    (result,) = results(Tensor("x", data))
    expected = (
        data
        if isinstance(data, torch.Tensor)
        else torch.from_numpy(np.array(data).astype(np.array(data).dtype.newbyteorder("=")))
    )
    back = decode("x", result.tensor)
    assert back.dtype == expected.dtype
    assert torch.equal(back, expected)


def test_a_large_tensor_arrives_in_chunks_with_its_digest() -> None:
    data = torch.arange(500_000, dtype=torch.float64)
    writer = EventWriter("r", LIMIT // 2)
    tensor = Tensor("x", data, axes=("n",), item="i")
    found = ResultCheck("a", message_bytes=LIMIT, part_bytes=LIMIT // 2).found(tensor)
    messages = list(writer.messages(found))
    head, chunks = messages[0].result, [m.tensor_chunk for m in messages[1:]]
    assert (head.tensor.data, head.last, head.tensor.byte_length) == (b"", False, 4_000_000)
    assert [c.offset for c in chunks] == list(range(0, 4_000_000, 512 * 1024))
    assert [c.last for c in chunks] == [False] * (len(chunks) - 1) + [True]
    whole = b"".join(c.data for c in chunks)
    assert whole == data.numpy().tobytes()
    (done,) = writer.messages(Completed("", Usage()))
    (checksum,) = done.completed.checksums
    assert (checksum.name, checksum.item) == ("x", "i")
    assert checksum.sha256 == hashlib.sha256(whole).hexdigest()
    assert done.completed.results == 1


def test_a_large_graph_names_nodes_before_edges() -> None:
    nodes = [Node(f"n{i}", {"text": "x" * 100, "i": i}) for i in range(20_000)]
    edges = [Edge(f"n{i}", f"n{i + 1}", {"w": i / 2}) for i in range(19_999)]
    parts = results(Graph("g", nodes, edges))
    assert len(parts) > 3
    seen: set[str] = set()
    count = 0
    for part in parts:
        seen |= {node.id for node in part.graph.nodes}
        for edge in part.graph.edges:
            assert edge.source in seen
            assert edge.target in seen
            count += 1
    assert (len(seen), count) == (20_000, 19_999)


def test_record_text_and_item_error() -> None:
    record, text, error = results(
        Record("r", {"a": 1, "b": [None, "x"], "nan": float("nan")}),
        Text("t", "häß", [Span(1, 2, 0.5, "ä")]),
        ItemError("e", InvalidParams.field("prompt", "is empty"), item="3"),
    )
    assert json_format.MessageToDict(record.record) == {"a": 1, "b": [None, "x"], "nan": None}
    assert (text.text.text, text.text.spans[0].start, text.text.spans[0].label) == ("häß", 1, "ä")
    assert (error.error.code, error.item, error.last) == (3, "3", True)
    assert len(error.error.details) == 2


def test_completed_counts_and_measures() -> None:
    writer = EventWriter("r", LIMIT // 2)
    for event in (Progress("forward", 1, 2, "rows"), Warned("ODD", "look"), Found(Record("r", {}))):
        list(writer.messages(event))
    usage = Usage(queue_s=1, forward_s=2, compute_s=3, total_s=6, rows=7, tokens=8, largest_batch=9)
    (last,) = writer.messages(Completed("rev", usage))
    done = last.completed
    assert (done.events, done.results, done.warnings, done.model_revision) == (4, 1, 1, "rev")
    assert (done.usage.forward_seconds, done.usage.rows, done.usage.largest_batch) == (2, 7, 9)
