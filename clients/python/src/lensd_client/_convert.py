"""Messages of one event, turned into this client's values. Pure; joins nothing."""

from typing import Any, cast

import numpy as np

from lensd_client._structs import from_struct
from lensd_client.events import Accepted, Completed, ModelState, Progress, Usage, Warned
from lensd_client.results import AnnotatedText, Edge, Graph, Node, Record, Span, Table
from lensd_proto.v1 import analysis_pb2, models_pb2, results_pb2

_COLUMN_TYPES = {"doubles": np.float64, "integers": np.int64, "bools": np.bool_}


def accepted(message: analysis_pb2.Accepted) -> Accepted:
    """The event of the same name."""
    return Accepted(
        analyzer=message.analyzer,
        analyzer_version=message.analyzer_version,
        distribution=message.distribution,
        model=message.model,
        model_state=model_state(message.model_state),
        model_revision=message.model_revision,
        queue_position=message.queue_position,
    )


def model_state(number: int) -> ModelState:
    """Lower-case name of a state; empty when unspecified or unknown."""
    if number not in models_pb2.ModelState.values():
        return ""
    name = models_pb2.ModelState.Name(cast("models_pb2.ModelState", number))
    state = name.removeprefix("MODEL_STATE_").lower()
    return "" if state == "unspecified" else cast("ModelState", state)


def progress(message: analysis_pb2.Progress) -> Progress:
    """The event of the same name."""
    return Progress(message.stage, message.done, message.total, message.unit, message.detail)


def warning(message: analysis_pb2.Warning) -> Warned:
    """The event of the same name."""
    return Warned(message.reason, message.message, message.item)


def completed(message: analysis_pb2.Completed) -> Completed:
    """The event of the same name."""
    usage = message.usage
    return Completed(
        events=message.events,
        results=message.results,
        warnings=message.warnings,
        model_revision=message.model_revision,
        usage=Usage(
            queue_s=usage.queue_seconds,
            forward_s=usage.forward_seconds,
            compute_s=usage.compute_seconds,
            total_s=usage.total_seconds,
            rows=usage.rows,
            tokens=usage.tokens,
            shared_rows=usage.shared_rows,
            peak_capture_bytes=usage.peak_capture_bytes,
            largest_batch=usage.largest_batch,
            reused_tokens=usage.reused_tokens,
        ),
        checksums={(c.name, c.item): c.sha256 for c in message.checksums},
    )


def table(message: results_pb2.Table, **names: str) -> Table:
    """One part of a table."""
    columns = {column.name: _column(column) for column in message.columns}
    units = {column.name: column.unit for column in message.columns if column.unit}
    return Table(columns, units, **names)


def _column(column: results_pb2.Column) -> np.ndarray[Any, Any]:
    kind = column.WhichOneof("values")
    nulls = list(column.null_rows)
    if kind is None or kind == "strings":
        texts = np.array(list(column.strings.values), dtype=object)
        texts[nulls] = None
        return texts
    values = np.array(getattr(column, kind).values, dtype=_COLUMN_TYPES[kind])
    if not nulls:
        return values
    mask = np.zeros(len(values), dtype=np.bool_)
    mask[nulls] = True
    return np.ma.MaskedArray(values, mask)


def graph(message: results_pb2.Graph, **names: str) -> Graph:
    """One part of a graph."""
    return Graph(
        nodes=tuple(Node(node.id, from_struct(node.attributes)) for node in message.nodes),
        edges=tuple(Edge(e.source, e.target, from_struct(e.attributes)) for e in message.edges),
        **names,
    )


def record(message: Any, **names: str) -> Record:
    """A record, from its Struct."""
    return Record(from_struct(message), **names)


def text(message: results_pb2.AnnotatedText, **names: str) -> AnnotatedText:
    """A text with its spans."""
    spans = tuple(Span(s.start, s.end, s.score, s.label) for s in message.spans)
    return AnnotatedText(message.text, spans, **names)
