"""Whether what an analyzer yields can be carried and read, asked before it is handed on.

Invariant: a result that passes becomes messages without fail and joins up at the caller, so that
an analysis whose results do not is known to have failed while it still can. What passes is a copy in
plain values: lists, arrays on the host, no tensors on a device.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import index
from typing import Any, cast

import numpy as np

from lensd_api import InvalidResult, LensdError
from lensd_api.results import Edge, Graph, ItemError, Node, Record, Result, Span, Table, Tensor, Text
from lensd_server.engine.columns import Column, Kind, read_column, row_ends
from lensd_server.engine.dense import as_array
from lensd_server.engine.events import Found
from lensd_server.engine.plain import Unsound, field_bytes, plain, text

#: Name, title and item of a result together travel with every part of it.
_MAX_NAMES = 8 * 1024
#: What is around a value in its message: identifiers, numbers, tags.
_ENVELOPE = 1024
#: Of a name that is shown in an error.
_SHOWN = 80
#: Bytes a plain value of so many bytes on the wire occupies here, about.
_IN_MEMORY = 4
#: Rows, nodes and edges from which on looking at a result takes more than a few milliseconds.
_LONG = 5000
#: Bytes of a tensor from which on copying it does.
_LARGE = 2**23
#: Numbers of a span, with tags.
_SPAN_BYTES = 32


def takes_long(result: object) -> bool:
    """Whether looking at all of ``result`` would hold up an event loop."""
    match result:
        case Table(columns=columns):
            return any(len(column) > _LONG for column in columns.values() if hasattr(column, "__len__"))
        case Graph(nodes=nodes, edges=edges):
            return len(nodes) + len(edges) > _LONG
        case Tensor(data=data):
            return getattr(data, "nbytes", 0) > _LARGE
        case _:
            return False


@dataclass(slots=True)
class _Open:
    """What is known of a result whose last part is to come."""

    of: type[Table] | type[Graph]
    #: Type of each column, ``None`` while no row had a value.
    kinds: dict[str, Kind | None] = field(default_factory=dict[str, Kind | None])
    nodes: set[str] = field(default_factory=set[str])
    #: Ends of edges whose node is still to come, with the edge that names it first.
    awaited: dict[str, str] = field(default_factory=dict[str, str])


class ResultCheck:
    """Looks at the results of one analysis, in order."""

    def __init__(self, analyzer: str, *, message_bytes: int, part_bytes: int) -> None:
        """``message_bytes`` bounds a message, ``part_bytes`` the rows, nodes or edges in one."""
        self._analyzer = analyzer
        self._room, self._part_bytes = message_bytes - _MAX_NAMES - _ENVELOPE, part_bytes
        self._open: dict[tuple[str, str], _Open] = {}
        self._done: set[tuple[str, str]] = set()

    def found(self, result: Result) -> Found:
        """``result`` in plain values. Raises InvalidResult."""
        try:
            self._names(result)
            key = (result.name, result.item)
            if key in self._done:
                raise Unsound("was complete already")
            if (open_ := self._open.get(key)) is not None and type(result) not in (open_.of, ItemError):
                raise Unsound(f"began as a {open_.of.__name__.lower()} and goes on as something else")
            found = self._value(result)
        except Unsound as fault:
            raise self._refusal(result.name, str(fault)) from fault
        if getattr(result, "last", True):
            self._done.add(key)
            self._open.pop(key, None)
        return found

    def finish(self) -> None:
        """The analyzer is done. Raises InvalidResult when a result of several parts is not."""
        for name, _ in self._open:
            raise self._refusal(name, "is left without a last part: yield one with last=True")

    def _value(self, result: Result) -> Found:
        match result:
            case Table():
                return self._table(result)
            case Tensor():
                return self._tensor(result)
            case Graph():
                return self._graph(result)
            case Record():
                values, size = plain(_mapping(result.values, "values"))
                self._fits(size)
                return Found(replace(result, values=values), size * _IN_MEMORY)
            case Text():
                return self._text(result)
            case ItemError():
                if not isinstance(cast("object", result.error), LensdError):
                    raise Unsound("the error of an item must be a LensdError")
                return Found(result, _ENVELOPE)

    def _table(self, table: Table) -> Found:
        columns: list[Column] = []
        units = _mapping(table.units, "units")
        for name, raw in _mapping(table.columns, "columns").items():
            name = text(name, "the name of a column")
            unit = text(units.get(name, ""), f"the unit of column {_short(name)}")
            try:
                columns.append(read_column(name, raw, unit))
            except Unsound as fault:
                raise Unsound(f"column {_short(name)} {fault}") from fault
        if unknown := set(units) - {column.name for column in columns}:
            raise Unsound(f"has units for {_short(min(map(str, unknown)))}, which is no column of it")
        lengths = {len(column.values) for column in columns}
        if len(lengths) > 1:
            said = ", ".join(f"{_short(column.name)} {len(column.values)}" for column in columns[:8])
            raise Unsound(f"has columns that differ in length: {said}")
        self._same_columns(table, columns)
        self._rows_fit(columns, lengths.pop() if lengths else 0)
        values = {column.name: column.values for column in columns}
        checked = replace(table, columns=values, units=dict(units), last=bool(table.last))
        return Found(checked, sum(column.memory_bytes() for column in columns), tuple(columns))

    def _same_columns(self, table: Table, columns: list[Column]) -> None:
        kinds: dict[str, Kind | None] = {
            column.name: None if column.is_empty else column.kind for column in columns
        }
        open_ = self._open.setdefault((table.name, table.item), _Open(Table, dict(kinds)))
        if list(open_.kinds) != list(kinds):
            raise Unsound(
                f"has columns {', '.join(map(_short, kinds))} in this part "
                f"and {', '.join(map(_short, open_.kinds))} before"
            )
        for name, kind in kinds.items():
            before = open_.kinds[name]
            numbers = {kind, before} == {"integers", "doubles"}
            if kind is not None and before is not None and kind != before and not numbers:
                raise Unsound(f"column {_short(name)} holds {kind} in this part and {before} before")
            open_.kinds[name] = kind if before is None or (numbers and kind == "doubles") else before

    def _rows_fit(self, columns: list[Column], rows: int) -> None:
        room = self._part_bytes - sum(column.wire_overhead for column in columns)
        if rows and sum(column.wire_bytes for column in columns) > room:
            sizes = np.diff(row_ends(columns, rows), prepend=0)
            if (largest := int(sizes.max())) > room:
                raise Unsound(f"row {int(sizes.argmax())} alone needs {largest} bytes, {room} may be sent")
        if room < 0:
            raise Unsound("the names of its columns alone are too long for a message")

    def _tensor(self, tensor: Tensor) -> Found:
        given = as_array(tensor.data)
        array = given.array
        axes = tuple(text(axis, "the name of an axis") for axis in tensor.axes)
        if axes and len(axes) != array.ndim:
            raise Unsound(f"has {len(axes)} axes for {array.ndim} dimensions")
        if unknown := set(tensor.labels) - set(axes):
            raise Unsound(f"has labels for {_short(min(map(str, unknown)))}, which is not one of its axes")
        labels = {
            axis: [text(str(label), f"a label of axis {_short(axis)}") for label in names]
            for axis, names in tensor.labels.items()
        }
        for axis, length in zip(axes, array.shape, strict=False):
            if labels.get(axis) and len(labels[axis]) != length:
                raise Unsound(f"has {len(labels[axis])} labels for axis {_short(axis)} of length {length}")
        said = [
            text(tensor.unit, "the unit"),
            *axes,
            *(label for names in labels.values() for label in names),
        ]
        self._fits(sum(field_bytes(len(word.encode())) + 8 for word in said))
        # Off the device and out of the graph of gradients, in the library's own type.
        own = given.copy()
        data = own.as_torch() if hasattr(tensor.data, "detach") else own.array
        return Found(replace(tensor, data=data, axes=axes, labels=labels), array.nbytes, dense=own)

    def _graph(self, graph: Graph) -> Found:
        open_ = self._open.setdefault((graph.name, graph.item), _Open(Graph))
        total = 0
        nodes: list[Node] = []
        for node in graph.nodes:
            name = text(node.id, "the id of a node")
            if name in open_.nodes:
                raise Unsound(f"has two nodes {_short(name)}")
            open_.nodes.add(name)
            open_.awaited.pop(name, None)
            attributes, size = self._attributes(node.attributes, f"node {_short(name)}", name)
            nodes.append(Node(name, attributes))
            total += size
        edges: list[Edge] = []
        for edge in graph.edges:
            ends = text(edge.source, "the source of an edge"), text(edge.target, "the target of an edge")
            label = f"the edge from {_short(ends[0])} to {_short(ends[1])}"
            for end in ends:
                if end not in open_.nodes:
                    open_.awaited.setdefault(end, label)
            attributes, size = self._attributes(edge.attributes, label, *ends)
            edges.append(Edge(*ends, attributes))
            total += size
        if graph.last and open_.awaited:
            end, label = next(iter(open_.awaited.items()))
            raise Unsound(f"{label} names {_short(end)}, which is no node of any part")
        return Found(replace(graph, nodes=nodes, edges=edges, last=bool(graph.last)), total * _IN_MEMORY)

    def _attributes(self, given: object, label: str, *names: str) -> tuple[dict[str, Any], int]:
        try:
            attributes, size = plain(_mapping(given, "attributes"))
        except Unsound as fault:
            raise Unsound(f"{label}: {fault}") from fault
        size = field_bytes(field_bytes(size) + sum(field_bytes(len(name.encode())) for name in names))
        if size > self._part_bytes:
            raise Unsound(f"{label} alone needs {size} bytes, {self._part_bytes} may be sent")
        return attributes, size

    def _text(self, result: Text) -> Found:
        whole = text(result.text, "the text")
        size = len(whole.encode())
        spans: list[Span] = []
        for span in result.spans:
            try:
                start, end, score = index(span.start), index(span.end), float(span.score)
            except TypeError:
                raise Unsound("a span needs whole numbers as its ends and a number as its score") from None
            if not 0 <= start <= end <= len(whole):
                raise Unsound(
                    f"a span from {start} to {end} is not within its text of {len(whole)} characters"
                )
            spans.append(Span(start, end, score, text(span.label, "the label of a span")))
            size += _SPAN_BYTES + len(span.label.encode())
        self._fits(size)
        return Found(replace(result, text=whole, spans=spans), size * _IN_MEMORY)

    def _fits(self, size: int) -> None:
        if size > self._room:
            raise Unsound(
                f"needs {size} bytes in one message, {self._room} may be sent; "
                "put large values into a table or a tensor, which are split"
            )

    def _names(self, result: Result) -> None:
        names = [text(getattr(result, part), f"the {part}") for part in ("name", "title", "item")]
        if not names[0]:
            raise Unsound("has no name")
        if sum(len(name.encode()) for name in names) > _MAX_NAMES:
            raise Unsound(f"name, title and item take more than {_MAX_NAMES} bytes")

    def _refusal(self, name: object, fault: str) -> InvalidResult:
        shown = _short(name)
        return InvalidResult(
            f"analyzer {self._analyzer} found something that cannot be sent: result {shown}: {fault}",
            metadata={"analyzer": self._analyzer, "result": shown},
        )


def _mapping(value: object, what: str) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise Unsound(f"its {what} are a {type(value).__name__}, not a mapping")
    return cast("Mapping[Any, Any]", value)


def _short(name: object) -> str:
    """A name as an error shows it: an author may have made it of anything."""
    shown = str(name).encode("utf-8", "replace").decode()
    return repr(shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "…")
