"""Whether one analysis's events are what the contract promises: written anew, apart from the client library."""

import hashlib
from dataclasses import dataclass, field

from lensd_proto.v1 import analysis_pb2, results_pb2

_Key = tuple[str, str]


@dataclass(slots=True)
class StreamCheck:
    """Takes the events of one analysis in order; ``faults`` says what was wrong, in words."""

    request_id: str
    faults: list[str] = field(default_factory=list[str])
    events: int = 0
    accepted: bool = False
    completed: bool = False
    failed: bool = False
    results: int = 0
    _parts: dict[_Key, int] = field(default_factory=dict[_Key, int])
    _tensors: dict[_Key, "_Tensor"] = field(default_factory=dict[_Key, "_Tensor"])
    _digests: dict[_Key, str] = field(default_factory=dict[_Key, str])
    _done: set[_Key] = field(default_factory=set[_Key])

    @property
    def ended(self) -> bool:
        """Whether the last event has come."""
        return self.completed or self.failed

    def feed(self, event: analysis_pb2.AnalyzeResponse) -> None:
        """One event."""
        kind = event.WhichOneof("event")
        self._expect(not self.ended, f"`{kind}` after the end")
        self._expect(event.request_id == self.request_id, f"an event of {event.request_id!r}")
        self._expect(event.sequence == self.events, f"event {event.sequence} where {self.events} was due")
        self.events += 1
        if kind == "accepted":
            self._expect(event.sequence == 0, "`accepted` was not the first event")
            self.accepted = True
        elif kind == "result":
            self._result(event.result)
        elif kind == "tensor_chunk":
            self._chunk(event.tensor_chunk)
        elif kind == "completed":
            self._expect(self.accepted, "`completed` without `accepted`")
            self._complete(event.completed)
        elif kind == "failed":
            self.failed = True

    def close(self, *, ok: bool) -> None:
        """The call is over; ``ok`` says whether its status was OK. Exactly one of the two ends it."""
        self._expect(not ok or self.completed, "the stream ended well without `completed`")
        self._expect(ok or not self.completed, "a status other than OK after `completed`")

    def _result(self, result: results_pb2.Result) -> None:
        key = (result.name, result.item)
        self._expect(key not in self._done, f"{key} came again after its last part")
        if result.WhichOneof("value") == "tensor":
            tensor = result.tensor
            self._tensors[key] = _Tensor(tensor.byte_length, len(tensor.data), hashlib.sha256(tensor.data))
            if self._tensors[key].whole:
                self._finish_tensor(key)
            return
        due = self._parts.get(key, 0)
        self._expect(result.part == due, f"part {result.part} of {key} where {due} was due")
        self._parts[key] = due + 1
        if result.last:
            self._finish(key)

    def _chunk(self, chunk: results_pb2.TensorChunk) -> None:
        key = (chunk.name, chunk.item)
        tensor = self._tensors.get(key)
        if tensor is None:
            self.faults.append(f"a chunk of {key}, which never began")
            return
        self._expect(chunk.offset == tensor.received, f"a chunk of {key} at the wrong place")
        tensor.received += len(chunk.data)
        tensor.digest.update(chunk.data)
        self._expect(tensor.whole == chunk.last, f"the last chunk of {key} does not complete it")
        if chunk.last:
            self._finish_tensor(key)

    def _finish_tensor(self, key: _Key) -> None:
        self._digests[key] = self._tensors.pop(key).digest.hexdigest()
        self._finish(key)

    def _finish(self, key: _Key) -> None:
        self._parts.pop(key, None)
        self._done.add(key)
        self.results += 1

    def _complete(self, done: analysis_pb2.Completed) -> None:
        self.completed = True
        self._expect(done.events == self.events, f"{done.events} events were sent, {self.events} came")
        self._expect(done.results == self.results, f"{done.results} results were sent, {self.results} came")
        self._expect(not self._parts and not self._tensors, "results were left unfinished")
        promised = {(c.name, c.item): c.sha256 for c in done.checksums}
        self._expect(promised == self._digests, "the digests of the tensors differ")

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.faults.append(otherwise)


@dataclass(slots=True)
class _Tensor:
    """A tensor whose bytes are coming."""

    byte_length: int
    received: int
    digest: "hashlib._Hash"

    @property
    def whole(self) -> bool:
        return self.received == self.byte_length
