"""One analysis's messages in, typed events out; nothing that is not whole gets through.

The rules of the stream are checked here and nowhere else: sequence numbers without gaps,
parts counting from 0, chunks at the right offsets, digests, the counts in ``completed``.
Sync, async and many-at-once callers feed it alike.
"""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from lensd_client import _convert
from lensd_client._status import error_from_status
from lensd_client.errors import ChecksumMismatch, MissingPart, SequenceGap, TruncatedStream
from lensd_client.events import Completed, Event, PartEvent, ResultEvent
from lensd_client.results import Graph, Table, Tensor
from lensd_client.results.tensor import ELEMENT_TYPES
from lensd_proto.v1 import analysis_pb2, results_pb2

_Key = tuple[str, str]


@dataclass(slots=True)
class _Parts:
    """Parts of a table or graph so far."""

    values: list[Table] | list[Graph]
    title: str


@dataclass(slots=True)
class _Bytes:
    """Bytes of a tensor so far."""

    message: results_pb2.Tensor
    title: str
    data: bytearray


@dataclass(slots=True)
class Assembler:
    """The state of one analysis's stream."""

    request_id: str = ""
    is_finished: bool = False
    _next: int = 0
    _results: int = 0
    _warnings: int = 0
    _parts: dict[_Key, _Parts] = field(default_factory=dict[_Key, _Parts])
    _bytes: dict[_Key, _Bytes] = field(default_factory=dict[_Key, _Bytes])
    _digests: dict[_Key, str] = field(default_factory=dict[_Key, str])
    _done: set[_Key] = field(default_factory=set[_Key])

    def feed(self, message: analysis_pb2.AnalyzeResponse) -> Iterator[Event]:
        """The events that ``message`` completes; none while a tensor waits for its chunks.

        Raises a StreamError when the stream breaks its rules, and the error itself when the
        message is ``failed``.
        """
        self._check_order(message)
        kind = message.WhichOneof("event")
        match kind:
            case "accepted":
                yield _convert.accepted(message.accepted)
            case "progress":
                yield _convert.progress(message.progress)
            case "warning":
                self._warnings += 1
                yield _convert.warning(message.warning)
            case "result":
                yield from self._take_result(message.result)
            case "tensor_chunk":
                yield from self._take_chunk(message.tensor_chunk)
            case "completed":
                yield self._complete(_convert.completed(message.completed))
            case "failed":
                self.is_finished = True
                raise error_from_status(message.failed.status)
            case _:
                return  # an event of a later server: counted, otherwise not ours to judge

    def finish(self) -> None:
        """The stream has ended. Raises TruncatedStream unless ``completed`` came before."""
        if not self.is_finished:
            raise TruncatedStream(
                f"the stream ended after {self._next} events without `completed`: "
                "the results are incomplete; run the analysis again"
            )

    def _check_order(self, message: analysis_pb2.AnalyzeResponse) -> None:
        if self.is_finished:
            raise SequenceGap(f"event {message.sequence} came after the last one")
        if message.sequence != self._next:
            raise SequenceGap(f"event {message.sequence} came where {self._next} was due")
        kind = message.WhichOneof("event")
        if (self._next == 0) != (kind == "accepted") and kind != "failed":
            raise SequenceGap(f"event {message.sequence} is `{kind}`: `accepted` comes first, once")
        self.request_id = self.request_id or message.request_id
        if message.request_id != self.request_id:
            raise SequenceGap(f"an event of {message.request_id!r} came in the stream of {self.request_id!r}")
        self._next += 1

    def _take_result(self, message: results_pb2.Result) -> Iterator[Event]:
        key = (message.name, message.item)
        if key in self._done:
            raise MissingPart(f"{_label(key)} came twice")
        names = {"name": message.name, "title": message.title, "item": message.item}
        match message.WhichOneof("value"):
            case "table":
                yield from self._take_part(key, message, _convert.table(message.table, **names))
            case "graph":
                yield from self._take_part(key, message, _convert.graph(message.graph, **names))
            case "tensor":
                yield from self._take_tensor(key, message)
            case "record":
                yield self._give(key, _convert.record(message.record, **names), message.title)
            case "text":
                yield self._give(key, _convert.text(message.text, **names), message.title)
            case "error":
                self._drop(key)
                yield self._give(key, error_from_status(message.error), message.title)
            case _:
                raise MissingPart(f"{_label(key)} has no value this client knows; upgrade lensd-client")

    def _take_part(self, key: _Key, message: results_pb2.Result, value: Table | Graph) -> Iterator[Event]:
        parts = self._parts.setdefault(key, _Parts([], message.title))
        if message.part != len(parts.values):
            raise MissingPart(f"part {message.part} of {_label(key)} came where {len(parts.values)} was due")
        if parts.values and type(parts.values[0]) is not type(value):
            raise MissingPart(f"part {message.part} of {_label(key)} is of another kind than the first")
        parts.values.append(value)  # pyright: ignore[reportArgumentType]  # one kind, checked above
        if message.part or not message.last:
            yield PartEvent(message.name, message.item, message.part, value)
        if message.last:
            del self._parts[key]
            whole = value if len(parts.values) == 1 else _join(key, parts.values)
            yield self._give(key, whole, parts.title)

    def _take_tensor(self, key: _Key, message: results_pb2.Result) -> Iterator[Event]:
        tensor = message.tensor
        if key in self._bytes:
            raise MissingPart(f"{_label(key)} began again before it was complete")
        element = ELEMENT_TYPES.get(_dtype(tensor))
        if element is None:
            raise MissingPart(f"{_label(key)} has an element type this client does not know")
        if math.prod(tensor.shape) * np.dtype(element).itemsize != tensor.byte_length:
            raise MissingPart(f"{_label(key)}: {tensor.byte_length} bytes do not fill {list(tensor.shape)}")
        if len(tensor.data) == tensor.byte_length:
            yield self._give(key, self._whole(key, tensor, message.title, tensor.data), message.title)
        elif len(tensor.data) > tensor.byte_length:
            raise MissingPart(f"{_label(key)} brought more bytes than it announced")
        else:
            self._bytes[key] = _Bytes(tensor, message.title, bytearray(tensor.data))

    def _take_chunk(self, chunk: results_pb2.TensorChunk) -> Iterator[Event]:
        key = (chunk.name, chunk.item)
        waiting = self._bytes.get(key)
        if waiting is None:
            raise MissingPart(f"a chunk of {_label(key)} came without its tensor")
        if chunk.offset != len(waiting.data):
            raise MissingPart(
                f"a chunk of {_label(key)} begins at {chunk.offset}, {len(waiting.data)} was due"
            )
        waiting.data += chunk.data
        if chunk.last != (len(waiting.data) == waiting.message.byte_length):
            raise MissingPart(
                f"{_label(key)}: {len(waiting.data)} of {waiting.message.byte_length} bytes "
                + ("at its last chunk" if chunk.last else "and more to come")
            )
        if chunk.last:
            del self._bytes[key]
            yield self._give(
                key, self._whole(key, waiting.message, waiting.title, waiting.data), waiting.title
            )

    def _whole(self, key: _Key, message: results_pb2.Tensor, title: str, data: bytes | bytearray) -> Tensor:
        self._digests[key] = hashlib.sha256(data).hexdigest()
        return Tensor.from_bytes(
            data,
            _dtype(message),
            tuple(message.shape),
            axes=tuple(axis.name for axis in message.axes),
            labels={axis.name: tuple(axis.labels) for axis in message.axes if axis.labels},
            unit=message.unit,
            name=key[0],
            item=key[1],
            title=title,
        )

    def _give(self, key: _Key, value: Any, title: str) -> ResultEvent:
        self._done.add(key)
        self._results += 1
        return ResultEvent(key[0], key[1], value, title)

    def _drop(self, key: _Key) -> None:
        """An item that fails half-way takes its unfinished parts with it."""
        self._parts.pop(key, None)
        self._bytes.pop(key, None)

    def _complete(self, event: Completed) -> Completed:
        unfinished = [*self._parts, *self._bytes]
        if unfinished:
            raise MissingPart(f"completed, but the end of {', '.join(map(_label, unfinished))} is missing")
        for what, sent, got in (
            ("events", event.events, self._next),
            ("results", event.results, self._results),
            ("warnings", event.warnings, self._warnings),
        ):
            if sent != got:
                raise MissingPart(f"the server sent {sent} {what}, {got} arrived")
        for key, digest in self._digests.items():
            if event.checksums.get(key, "").lower() != digest:
                raise ChecksumMismatch(f"the bytes of {_label(key)} are not those the server sent")
        self.is_finished = True
        return event


def _dtype(tensor: results_pb2.Tensor) -> str:
    if tensor.dtype not in results_pb2.DataType.values():
        return ""
    return results_pb2.DataType.Name(tensor.dtype).removeprefix("DATA_TYPE_").lower()


def _label(key: _Key) -> str:
    name, item = key
    return f"{name!r} of item {item!r}" if item else repr(name)


def _join(key: _Key, parts: list[Table] | list[Graph]) -> Table | Graph:
    first = parts[0]
    if isinstance(first, Graph):
        graphs = [part for part in parts if isinstance(part, Graph)]
        nodes = tuple(chain.from_iterable(part.nodes for part in graphs))
        edges = tuple(chain.from_iterable(part.edges for part in graphs))
        return Graph(nodes, edges, first.name, first.title, first.item)
    tables = [part for part in parts if isinstance(part, Table)]
    for part in tables:
        if list(part.columns) != list(first.columns):
            raise MissingPart(f"parts of {_label(key)} have different columns")
    columns = {name: _append([table.columns[name] for table in tables]) for name in first.columns}
    return Table(columns, first.units, first.name, first.title, first.item)


def _append(arrays: list[np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    # NumPy would drop the masks: values and masks are appended apart.
    whole = np.concatenate([np.asarray(array) for array in arrays])
    if not any(isinstance(array, np.ma.MaskedArray) for array in arrays):
        return whole
    return np.ma.MaskedArray(whole, np.concatenate([np.ma.getmaskarray(array) for array in arrays]))
