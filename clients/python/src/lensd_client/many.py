"""Many analyses over one stream: what is in flight, and the outcome of each."""

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from lensd_client._assembly import Assembler
from lensd_client.errors import LensdError, StreamError, TruncatedStream
from lensd_client.events import Completed, Warned
from lensd_client.findings import Findings, Item
from lensd_client.requests import Request, to_message
from lensd_client.results import Value
from lensd_proto.v1 import analysis_pb2

#: How a server says that a stream has as many analyses as it may, and how many that are.
_STREAM_FULL, _STREAM_LIMIT = "STREAM_FULL", "max_analyses_per_stream"


class Outcome:
    """How one of many analyses ended; ``index`` counts the requests from 0.

    ``error`` is None when it is complete. Reading results of one that failed raises its error.
    """

    def __init__(self, index: int, request: Request, findings: Findings, error: LensdError | None) -> None:
        self.index = index
        self.request = request
        self.error = error
        self._findings = findings

    @property
    def completed(self) -> Completed | None:
        """Usage and model revision; None when it failed."""
        return self._findings.completed

    @property
    def warnings(self) -> tuple[Warned, ...]:
        """What to know about the results."""
        return self._findings.warnings

    def results(self) -> list[Value]:
        """Every result in order of arrival, failed items left out."""
        self._raise_error()
        return self._findings.values()

    def items(self) -> Iterator[Item]:
        """Every item with its results, errors carried inside."""
        self._raise_error()
        return self._findings.by_item()

    def __getitem__(self, name: str | tuple[str, str]) -> Any:
        """The result called ``name``, or of (name, item), of the kind the analyzer declares."""
        self._raise_error()
        return self._findings.pick(name)

    def __repr__(self) -> str:
        names = ", ".join(dict.fromkeys(value.name for value in self._findings.values()))
        how = f"failed: {self.error.message}" if self.error else names or "no results"
        return f"<Outcome {self.index} of {self.request.analyzer}: {how}>"

    def _raise_error(self) -> None:
        if self.error is not None:
            raise self.error


@dataclass(slots=True)
class _Running:
    index: int
    request: Request
    message: analysis_pb2.AnalyzeRequest
    assembler: Assembler = field(default_factory=Assembler)
    findings: Findings = field(default_factory=Findings)


class InFlight:
    """The analyses of one stream that have been started and not ended. Sends nothing itself."""

    def __init__(self, requests: Iterable[Request], max_in_flight: int) -> None:
        """Raises ValueError unless at least one may be in flight."""
        if max_in_flight < 1:
            raise ValueError(f"max_in_flight must be at least 1, not {max_in_flight}")
        self._requests = iter(requests)
        self._max = max_in_flight
        self._running: dict[str, _Running] = {}
        #: Beyond what the server takes on one stream: they wait until one of the others ends.
        self._refused: deque[_Running] = deque()
        self._started = 0
        self._is_exhausted = False

    @property
    def is_done(self) -> bool:
        """Whether every request has ended, so that nothing more will be sent."""
        return self._is_exhausted and not self._running and not self._refused

    def again(self) -> Iterator[analysis_pb2.AnalyzeManyRequest]:
        """What is in flight, for another stream, since the first was refused before its first message."""
        for running in self._running.values():
            yield analysis_pb2.AnalyzeManyRequest(start=running.message)

    def due(self) -> Iterator[analysis_pb2.AnalyzeManyRequest]:
        """Messages that start as many requests as there is room for."""
        while self._refused and len(self._running) < self._max:
            again = self._refused.popleft()
            self._running[again.message.request_id] = again
            yield analysis_pb2.AnalyzeManyRequest(start=again.message)
        while not self._is_exhausted and len(self._running) < self._max:
            request = next(self._requests, None)
            if request is None:
                self._is_exhausted = True
            else:
                yield self._start(request)

    def _start(self, request: Request) -> analysis_pb2.AnalyzeManyRequest:
        message = to_message(request)
        message.request_id = message.request_id or uuid4().hex
        if message.request_id in self._running:
            raise ValueError(f"request_id {message.request_id!r} is running already on this stream")
        self._running[message.request_id] = _Running(self._started, request, message)
        self._started += 1
        return analysis_pb2.AnalyzeManyRequest(start=message)

    def feed(self, message: analysis_pb2.AnalyzeManyResponse) -> Outcome | None:
        """The outcome, if ``message`` ends an analysis.

        A stream error in one analysis ends that one; what still comes of it is ignored.
        """
        running = self._running.get(message.response.request_id)
        if running is None:
            return None
        error: LensdError | None = None
        try:
            for event in running.assembler.feed(message.response):
                running.findings.take(event)
        except LensdError as failure:
            error = failure
        if error is None and not running.assembler.is_finished:
            return None
        del self._running[message.response.request_id]
        if error is not None and error.reason == _STREAM_FULL and self._running:
            self._max = min(self._max, int(error.metadata.get(_STREAM_LIMIT, len(self._running))))
            self._refused.append(_Running(running.index, running.request, running.message))
            return None
        return Outcome(running.index, running.request, running.findings, error)

    def finish(self) -> None:
        """The stream has ended. Raises TruncatedStream when analyses had not."""
        if self._running:
            raise TruncatedStream(f"the stream ended while {len(self._running)} analyses were running")


def farewell(outcome: Outcome, request_id: str) -> Iterator[analysis_pb2.AnalyzeManyRequest]:
    """The cancel message for an analysis given up on here while the server may still run it."""
    if isinstance(outcome.error, StreamError):
        yield analysis_pb2.AnalyzeManyRequest(cancel=analysis_pb2.Cancel(request_id=request_id))


def split(
    messages: Iterator[analysis_pb2.AnalyzeManyRequest],
) -> tuple[Iterator[analysis_pb2.AnalyzeManyRequest], list[analysis_pb2.AnalyzeManyRequest]]:
    """The first message, and the others."""
    listed = list(messages)
    return iter(listed[:1]), listed[1:]
