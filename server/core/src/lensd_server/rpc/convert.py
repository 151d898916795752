"""Events of an analysis to messages: numbered, split so that none is too large, and accounted for.

Messages are made one at a time as the stream asks for them, so that a large result never
exists twice.
"""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from typing import TypeVar

from lensd_api.results import Graph, ItemError, Record, Result, Table, Tensor, Text
from lensd_proto.v1 import analysis_pb2, results_pb2
from lensd_server.engine.dense import Dense
from lensd_server.engine.events import Accepted, AnalysisEvent, Completed, Found, Progress, Usage, Warned
from lensd_server.rpc import graphs, tables, tensors
from lensd_server.rpc.models import STATES
from lensd_server.rpc.status import to_status
from lensd_server.rpc.values import pack_struct

T = TypeVar("T")


class EventWriter:
    """Turns the events of one analysis into its messages. Use one per analysis, in order."""

    def __init__(self, request_id: str, part_bytes: int) -> None:
        """``part_bytes`` bounds the rows, nodes, edges or elements in one message."""
        self._request_id = request_id
        self._part_bytes = part_bytes
        self._sequence = 0
        self._warnings = 0
        self._parts: dict[tuple[str, str], int] = {}
        self._done: set[tuple[str, str]] = set()
        self._checksums: list[analysis_pb2.TensorChecksum] = []

    def messages(self, event: AnalysisEvent) -> Iterator[analysis_pb2.AnalyzeResponse]:
        """One or more messages for ``event``, whose results the engine has checked."""
        match event:
            case Found():
                yield from self._found(event)
            case Accepted():
                yield self._response(accepted=_accepted(event))
            case Progress():
                yield self.progress(event)
            case Warned():
                self._warnings += 1
                warning = analysis_pb2.Warning(reason=event.reason, message=event.message, item=event.item)
                yield self._response(warning=warning)
            case Completed():
                yield from self._completed(event)

    def progress(self, event: Progress) -> analysis_pb2.AnalyzeResponse:
        """The message of a Progress event."""
        return self._response(
            progress=analysis_pb2.Progress(
                stage=event.stage,
                done=event.done,
                total=event.total,
                unit=event.unit,
                detail=event.detail,
            )
        )

    def failed(self, failure: analysis_pb2.Failed) -> analysis_pb2.AnalyzeResponse:
        """The last message of an analysis that failed within AnalyzeMany."""
        return self._response(failed=failure)

    def _response(
        self,
        *,
        accepted: analysis_pb2.Accepted | None = None,
        progress: analysis_pb2.Progress | None = None,
        result: results_pb2.Result | None = None,
        tensor_chunk: results_pb2.TensorChunk | None = None,
        warning: analysis_pb2.Warning | None = None,
        completed: analysis_pb2.Completed | None = None,
        failed: analysis_pb2.Failed | None = None,
    ) -> analysis_pb2.AnalyzeResponse:
        response = analysis_pb2.AnalyzeResponse(
            request_id=self._request_id,
            sequence=self._sequence,
            accepted=accepted,
            progress=progress,
            result=result,
            tensor_chunk=tensor_chunk,
            warning=warning,
            completed=completed,
            failed=failed,
        )
        self._sequence += 1
        return response

    def _found(self, found: Found) -> Iterator[analysis_pb2.AnalyzeResponse]:
        match result := found.result:
            case Table():
                assert len(found.columns) == len(result.columns), "a table that was not checked"
                for part, last in _with_last(
                    tables.encode(found.columns, self._part_bytes), final=result.last
                ):
                    yield self._part(result, last=last, table=part)
            case Graph():
                for part, last in _with_last(graphs.encode(result, self._part_bytes), final=result.last):
                    yield self._part(result, last=last, graph=part)
            case Tensor():
                assert found.dense is not None, "a tensor that was not checked"
                yield from self._tensor(result, found.dense)
            case Record():
                yield self._part(result, last=True, record=pack_struct(result.values))
            case Text():
                yield self._part(result, last=True, text=_annotated(result))
            case ItemError():
                yield self._part(result, last=True, error=to_status(result.error))

    def _part(self, result: Result, *, last: bool, **value: object) -> analysis_pb2.AnalyzeResponse:
        key = (result.name, result.item)
        message = results_pb2.Result(
            name=result.name,
            title=result.title,
            item=result.item,
            part=self._parts.get(key, 0),
            last=last,
            **value,  # pyright: ignore[reportArgumentType]
        )
        response = self._response(result=message)
        self._parts[key] = message.part + 1
        if last:
            self._done.add(key)
        return response

    def _tensor(self, result: Tensor, dense: Dense) -> Iterator[analysis_pb2.AnalyzeResponse]:
        encoded = tensors.encode(result, dense)
        header = encoded.header
        if header.ByteSize() + len(encoded.data) <= self._part_bytes:
            header.data = bytes(encoded.data)
            yield self._part(result, last=True, tensor=header)
            digest = encoded.digest()
        else:
            # The description may be large by itself (labels): all bytes go into chunks.
            yield self._part(result, last=False, tensor=header)
            hashed = sha256()
            for offset, data in encoded.chunks(self._part_bytes):
                hashed.update(data)
                chunk = results_pb2.TensorChunk(
                    name=result.name,
                    item=result.item,
                    offset=offset,
                    data=data,
                    last=offset + len(data) == len(encoded.data),
                )
                yield self._response(tensor_chunk=chunk)
            digest = hashed.hexdigest()
            self._done.add((result.name, result.item))
        self._checksums.append(analysis_pb2.TensorChecksum(name=result.name, item=result.item, sha256=digest))

    def _completed(self, event: Completed) -> Iterator[analysis_pb2.AnalyzeResponse]:
        yield self._response(
            completed=analysis_pb2.Completed(
                events=self._sequence + 1,
                results=len(self._done),
                warnings=self._warnings,
                checksums=self._checksums,
                model_revision=event.model_revision,
                usage=_usage(event.usage),
            )
        )


def _with_last(parts: Iterable[T], *, final: bool) -> Iterator[tuple[T, bool]]:
    """Pairs each part with whether it ends the result; one part is held back to know."""
    held: list[T] = []
    for part in parts:
        if held:
            yield held.pop(), False
        held.append(part)
    for part in held:
        yield part, final


def _accepted(event: Accepted) -> analysis_pb2.Accepted:
    return analysis_pb2.Accepted(
        analyzer=event.analyzer,
        analyzer_version=event.analyzer_version,
        distribution=event.distribution,
        model=event.model,
        model_state=STATES[event.model_state] if event.model_state is not None else None,
        model_revision=event.model_revision,
        queue_position=event.queue_position,
    )


def _annotated(result: Text) -> results_pb2.AnnotatedText:
    spans = [
        results_pb2.Span(start=span.start, end=span.end, score=float(span.score), label=span.label)
        for span in result.spans
    ]
    return results_pb2.AnnotatedText(text=result.text, spans=spans)


def _usage(usage: Usage) -> analysis_pb2.Usage:
    return analysis_pb2.Usage(
        queue_seconds=usage.queue_s,
        forward_seconds=usage.forward_s,
        compute_seconds=usage.compute_s,
        total_seconds=usage.total_s,
        rows=usage.rows,
        tokens=usage.tokens,
        shared_rows=usage.shared_rows,
        peak_capture_bytes=usage.peak_capture_bytes,
        largest_batch=usage.largest_batch,
        reused_tokens=usage.reused_tokens,
    )
