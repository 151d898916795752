"""From bytes to a checked request: what is refused before an analyzer is even looked up.

Handlers receive bytes, since generated ones answer malformed messages with UNKNOWN and a
class name, and oversize ones without details.
"""

import asyncio
import re
import time
import uuid
from functools import partial
from typing import TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError, Message

from lensd_api.errors import FieldViolation, InvalidRequest, TooLarge
from lensd_proto.v1 import analysis_pb2
from lensd_server.engine.events import AnalysisRequest, Priority
from lensd_server.rpc import tensors
from lensd_server.rpc.values import from_struct
from lensd_server.settings import NAME_PATTERN, LimitSettings

#: Parameters beyond this take more than a few milliseconds to read.
_LARGE_BYTES = 64 * 1024
#: What gRPC itself lets through; the application's own limit is below and says more.
TRANSPORT_BYTES = 64 * 1024 * 1024

M = TypeVar("M", bound=Message)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_NAME = re.compile(NAME_PATTERN)
# `distribution:name`, or a bare name.
_ANALYZER = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9._-]{0,127}:)?[A-Za-z0-9][A-Za-z0-9-]{0,63}")
_PRIORITIES = {
    analysis_pb2.PRIORITY_UNSPECIFIED: Priority.INTERACTIVE,
    analysis_pb2.PRIORITY_INTERACTIVE: Priority.INTERACTIVE,
    analysis_pb2.PRIORITY_BATCH: Priority.BATCH,
}


def parse(raw: bytes, message: type[M], max_bytes: int) -> M:
    """A message of type ``message``. Raises TooLarge or InvalidRequest."""
    if len(raw) > max_bytes:
        raise TooLarge(
            f"the request has {len(raw)} bytes, at most {max_bytes} are accepted "
            "(ServerService.GetServerInfo says so); send less, or several requests",
            reason="REQUEST_TOO_LARGE",
            metadata={"bytes": str(len(raw)), "max_bytes": str(max_bytes)},
        )
    name = message.DESCRIPTOR.full_name
    try:
        return message.FromString(raw)
    except DecodeError as error:
        # The library's text names nothing but the type; only its kind is used.
        if "UTF-8" in str(error):
            raise InvalidRequest(
                f"the bytes are not a {name}: a string field is not valid UTF-8", reason="INVALID_UTF8"
            ) from error
        if "Depth" in str(error):
            raise InvalidRequest(
                f"the bytes are not a {name}: values are nested too deeply", reason="NESTED_TOO_DEEPLY"
            ) from error
        raise InvalidRequest(
            f"the bytes are not a {name}: malformed protobuf; use stubs of lensd.v1",
            reason="MALFORMED_MESSAGE",
        ) from error


def read_request(
    message: analysis_pb2.AnalyzeRequest,
    *,
    limits: LimitSettings,
    peer: str = "",
    identity: str = "",
    call_deadline: float | None = None,
) -> AnalysisRequest:
    """A request as the engine takes it. Deadlines are on ``time.monotonic()``.

    Raises InvalidRequest with a violation per fault, or InvalidTensor.
    """
    faults = list(_faults(message))
    if faults:
        summary = "; ".join(f"{fault.field}: {fault.description}" for fault in faults)
        raise InvalidRequest(f"invalid request: {summary}", violations=faults)
    return AnalysisRequest(
        request_id=message.request_id or uuid.uuid4().hex,
        analyzer=message.analyzer,
        model=message.model,
        params=from_struct(message.params),
        tensors=tensors.decode_all(message.tensors) if message.tensors else {},
        priority=_PRIORITIES[message.priority],
        deadline=_deadline(message, limits, call_deadline),
        peer=peer,
        identity=identity,
    )


async def read_large(
    message: analysis_pb2.AnalyzeRequest,
    *,
    limits: LimitSettings,
    peer: str = "",
    identity: str = "",
    call_deadline: float | None = None,
) -> AnalysisRequest:
    """:func:`read_request`, on another thread where it would hold up the event loop."""
    read = partial(
        read_request, message, limits=limits, peer=peer, identity=identity, call_deadline=call_deadline
    )
    return await asyncio.to_thread(read) if message.ByteSize() > _LARGE_BYTES else read()


def is_request_id(text: str) -> bool:
    """Whether ``text`` may identify an analysis."""
    return _REQUEST_ID.fullmatch(text) is not None


def check_name(name: str, field: str = "name") -> None:
    """Raises InvalidRequest unless ``name`` may name a model or artifact."""
    if not _NAME.fullmatch(name):
        raise _refuse(field, f"must match {NAME_PATTERN}")


def check_analyzer_name(name: str, field: str = "name") -> None:
    """Raises InvalidRequest unless ``name`` may name an analyzer."""
    if not _ANALYZER.fullmatch(name):
        raise _refuse(field, "must be an analyzer's name, or distribution:name")


def _refuse(field: str, description: str) -> InvalidRequest:
    return InvalidRequest(f"{field}: {description}", violations=[FieldViolation(field, description)])


def _faults(message: analysis_pb2.AnalyzeRequest) -> "list[FieldViolation]":
    faults: list[FieldViolation] = []
    if message.request_id and not is_request_id(message.request_id):
        faults.append(FieldViolation("request_id", "at most 128 characters of [A-Za-z0-9._:-]"))
    if not message.analyzer:
        faults.append(
            FieldViolation("analyzer", "must name an analyzer; AnalyzerService.ListAnalyzers lists them")
        )
    elif not _ANALYZER.fullmatch(message.analyzer):
        faults.append(FieldViolation("analyzer", "must be an analyzer's name, or distribution:name"))
    if message.model and not _NAME.fullmatch(message.model):
        faults.append(FieldViolation("model", f"must match {NAME_PATTERN}"))
    if message.priority not in _PRIORITIES:
        faults.append(FieldViolation("priority", f"{message.priority} is not one of Priority"))
    if message.HasField("timeout") and _seconds(message.timeout) < 0:
        faults.append(FieldViolation("timeout", "must not be negative"))
    faults.extend(
        FieldViolation(f"tensors[{name[:64]!r}]", f"names of tensors must match {NAME_PATTERN}")
        for name in message.tensors
        if not _NAME.fullmatch(name)
    )
    return faults


def _deadline(
    message: analysis_pb2.AnalyzeRequest, limits: LimitSettings, call_deadline: float | None
) -> float | None:
    """The earliest of the call's deadline, the request's timeout and the server's limit."""
    now = time.monotonic()
    candidates = [] if call_deadline is None else [call_deadline]
    if message.HasField("timeout"):
        candidates.append(now + _seconds(message.timeout))
    if limits.max_timeout_s is not None:
        candidates.append(now + limits.max_timeout_s)
    return min(candidates, default=None)


def _seconds(duration: Duration) -> float:
    return duration.seconds + duration.nanos * 1e-9
