"""An in-process server that plays scripted streams, and values to script them with."""

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2, struct_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from clients.python.tests import catalogue
from lensd_client import Client
from lensd_proto.v1 import (
    analysis_pb2,
    analysis_pb2_grpc,
    analyzers_pb2_grpc,
    artifacts_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
    results_pb2,
    server_pb2_grpc,
)


def rich_status(
    code: grpc.StatusCode,
    message: str,
    *,
    reason: str = "",
    violations: Mapping[str, str] | None = None,
    retry_s: float | None = None,
    metadata: Mapping[str, str] | None = None,
) -> status_pb2.Status:
    """A google.rpc.Status with the details a lensd server sends."""
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason, domain="lensd", metadata=metadata or {})]
    if violations:
        found = [
            error_details_pb2.BadRequest.FieldViolation(field=f, description=d) for f, d in violations.items()
        ]
        details.append(error_details_pb2.BadRequest(field_violations=found))
    if retry_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(retry_s * 1000))
        details.append(retry)
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code.value[0], message=message, details=packed)


@dataclass
class Abort:
    """A step that ends the call with a status."""

    code: grpc.StatusCode
    message: str
    status: status_pb2.Status | None = None
    pushback_ms: int | None = None

    def end(self, context: grpc.ServicerContext) -> None:
        trailing: list[tuple[str, str | bytes]] = []
        if self.status is not None:
            trailing.append(("grpc-status-details-bin", self.status.SerializeToString()))
        if self.pushback_ms is not None:
            trailing.append(("grpc-retry-pushback-ms", str(self.pushback_ms)))
        context.set_trailing_metadata(tuple(trailing))
        context.abort(self.code, self.message)


class Hang:
    """A step that waits until the client has gone."""


class Script:
    """The events of one analysis. Each method adds one and returns the script."""

    def __init__(self, request_id: str = "r1") -> None:
        self.request_id = request_id
        self.steps: list[Any] = []
        self.digests: dict[tuple[str, str], str] = {}
        self.results: set[tuple[str, str]] = set()
        self.warnings = 0

    def add(self, **event: Any) -> "Script":
        sequence = sum(isinstance(step, analysis_pb2.AnalyzeResponse) for step in self.steps)
        self.steps.append(
            analysis_pb2.AnalyzeResponse(request_id=self.request_id, sequence=sequence, **event)
        )
        return self

    def accepted(self) -> "Script":
        return self.add(
            accepted=analysis_pb2.Accepted(
                analyzer="dla",
                analyzer_version="0.1.0",
                distribution="lensd-dla",
                model="tiny",
                model_state=models_pb2.MODEL_STATE_RESIDENT,
                model_revision="abc",
                queue_position=2,
            )
        )

    def progress(self, done: float, total: float) -> "Script":
        return self.add(progress=analysis_pb2.Progress(stage="forward", done=done, total=total, unit="rows"))

    def warning(self, reason: str, message: str, item: str = "") -> "Script":
        self.warnings += 1
        return self.add(warning=analysis_pb2.Warning(reason=reason, message=message, item=item))

    def result(
        self, name: str, item: str = "", *, part: int = 0, last: bool = True, **value: Any
    ) -> "Script":
        self.results.add((name, item))
        message = results_pb2.Result(name=name, title=name.title(), item=item, part=part, last=last, **value)
        return self.add(result=message)

    def table(
        self, name: str, item: str = "", *, part: int = 0, last: bool = True, **columns: Any
    ) -> "Script":
        table = results_pb2.Table(columns=[column(key, values) for key, values in columns.items()])
        return self.result(name, item, part=part, last=last, table=table)

    def record(self, name: str, values: Mapping[str, Any], item: str = "") -> "Script":
        struct = struct_pb2.Struct()
        struct.update(values)
        return self.result(name, item, record=struct)

    def tensor(
        self, name: str, array: Any, *, chunk: int | None = None, item: str = "", **given: Any
    ) -> "Script":
        """``chunk`` bytes come in the message itself and in each chunk after it."""
        array = np.asarray(array)
        data = array.tobytes()
        self.digests[name, item] = hashlib.sha256(data).hexdigest()
        dtype = given.pop("dtype", f"DATA_TYPE_{array.dtype.name.upper()}")
        first = data if chunk is None else data[:chunk]
        tensor = results_pb2.Tensor(
            dtype=dtype, shape=array.shape, data=first, byte_length=len(data), **given
        )
        self.result(name, item, last=chunk is None, tensor=tensor)
        for offset in range(len(first), len(data), chunk or 1):
            piece = data[offset : offset + (chunk or 1)]
            last = offset + len(piece) == len(data)
            self.add(
                tensor_chunk=results_pb2.TensorChunk(
                    name=name, item=item, offset=offset, data=piece, last=last
                )
            )
        return self

    def completed(self, **changed: Any) -> "Script":
        counts: dict[str, Any] = {
            "events": sum(isinstance(step, analysis_pb2.AnalyzeResponse) for step in self.steps) + 1,
            "results": len(self.results),
            "warnings": self.warnings,
            "checksums": [
                analysis_pb2.TensorChecksum(name=name, item=item, sha256=digest)
                for (name, item), digest in self.digests.items()
            ],
            "model_revision": "abc",
            "usage": analysis_pb2.Usage(forward_seconds=0.5, total_seconds=1.0, rows=1, tokens=14),
        }
        return self.add(completed=analysis_pb2.Completed(**{**counts, **changed}))

    def failed(self, status: status_pb2.Status) -> "Script":
        return self.add(failed=analysis_pb2.Failed(status=status))

    def abort(self, code: grpc.StatusCode, message: str = "", **given: Any) -> "Script":
        self.steps.append(Abort(code, message, **given))
        return self

    def hang(self) -> "Script":
        self.steps.append(Hang())
        return self


def column(name: str, values: Sequence[Any]) -> results_pb2.Column:
    """A column of the type of its values; None is a null row."""
    nulls = [i for i, value in enumerate(values) if value is None]
    sample = next((value for value in values if value is not None), 0.0)
    kinds: dict[type, tuple[str, Any, Any]] = {
        float: ("doubles", results_pb2.DoubleColumn, 0.0),
        int: ("integers", results_pb2.IntegerColumn, 0),
        str: ("strings", results_pb2.StringColumn, ""),
        bool: ("bools", results_pb2.BoolColumn, False),
    }
    arm, message, zero = kinds[type(sample)]
    filled = [zero if value is None else value for value in values]
    unit = "logit" if name == "value" else ""
    return results_pb2.Column(name=name, unit=unit, null_rows=nulls, **{arm: message(values=filled)})


ManyHandler = Callable[[Iterable[Any], grpc.ServicerContext], Iterator[analysis_pb2.AnalyzeManyResponse]]


@dataclass
class FakeServer:
    """Plays one script per call of Analyze, in order, and remembers what it was asked."""

    target: str = ""
    scripts: deque[Script] = field(default_factory=deque)
    many: ManyHandler | None = None
    requests: list[Any] = field(default_factory=list)
    metadata: list[dict[str, str]] = field(default_factory=list)
    #: A call of Analyze is over; of one that hangs, because the client is gone.
    ended: threading.Event = field(default_factory=threading.Event)
    statuses: dict[str, Any] = field(default_factory=dict)

    def play(self, *scripts: Script) -> None:
        self.scripts.extend(scripts)


class _Analysis(analysis_pb2_grpc.AnalysisServiceServicer):
    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake

    def Analyze(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        self.fake.requests.append(request)
        # At the start, since a call that was cancelled early never gets to its next step.
        context.add_callback(self.fake.ended.set)
        self.fake.metadata.append({key: value for key, value in context.invocation_metadata()})
        for step in self.fake.scripts.popleft().steps:
            if isinstance(step, Abort):
                step.end(context)
            elif isinstance(step, Hang):
                self.fake.ended.wait(30)
                return
            else:
                yield step

    def AnalyzeMany(self, request_iterator: Any, context: grpc.ServicerContext) -> Iterator[Any]:  # noqa: N802
        assert self.fake.many is not None
        return self.fake.many(request_iterator, context)


class _Health(health_pb2_grpc.HealthServicer):
    def __init__(self, fake: FakeServer) -> None:
        self.fake = fake

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        status = self.fake.statuses.get(request.service)
        if status is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return health_pb2.HealthCheckResponse(status=status)


@pytest.fixture
def fake() -> Iterator[FakeServer]:
    """A server on a free port of this machine."""
    state = FakeServer(statuses={"": health_pb2.HealthCheckResponse.SERVING})
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    analysis_pb2_grpc.add_AnalysisServiceServicer_to_server(_Analysis(state), server)
    models_pb2_grpc.add_ModelServiceServicer_to_server(catalogue.Models(), server)
    analyzers_pb2_grpc.add_AnalyzerServiceServicer_to_server(catalogue.Analyzers(), server)
    artifacts_pb2_grpc.add_ArtifactServiceServicer_to_server(catalogue.Artifacts(), server)
    server_pb2_grpc.add_ServerServiceServicer_to_server(catalogue.Server(), server)
    health_pb2_grpc.add_HealthServicer_to_server(_Health(state), server)
    state.target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield state
    server.stop(0).wait()


@pytest.fixture
def lens(fake: FakeServer) -> Iterator[Client]:
    """A client of the fake server."""
    with Client(fake.target, timeout_s=30) as client:
        yield client


@pytest.fixture
def new_script() -> type[Script]:
    """Makes scripts."""
    return Script


@pytest.fixture
def new_status() -> Callable[..., status_pb2.Status]:
    """Makes statuses with details."""
    return rich_status
