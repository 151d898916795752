"""The one place where a :class:`LensdError` becomes a gRPC status with google.rpc details.

Details above about 8 kB arrive as RESOURCE_EXHAUSTED and the real code is lost, so
everything that travels in trailing metadata is kept below :data:`MAX_BYTES` together.
"""

from typing import Any, NoReturn
from urllib.parse import quote

import grpc
import grpc.aio
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message
from google.rpc import code_pb2, status_pb2
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo

from lensd_api.errors import Draining, FieldViolation, InvalidRequest, LensdError, QuotaExceeded

DOMAIN = "lensd"
#: Bound of message and details together, as they travel.
MAX_BYTES = 6000

_MAX_MESSAGE = 1000
_MAX_VALUE = 256
_MAX_METADATA = 1500
#: ``LensdError.status`` is the name of the code, in gRPC and in google.rpc alike.
_CODES = {code.name: code for code in grpc.StatusCode}
_NAMES: dict[object, str] = {code.value[0]: code.name for code in grpc.StatusCode}


def code_of(error: LensdError) -> grpc.StatusCode:
    """The gRPC code of ``error``; INTERNAL when a plugin invented a status."""
    return _CODES.get(error.status, grpc.StatusCode.INTERNAL)


def to_status(error: LensdError) -> status_pb2.Status:
    """``error`` with its details: ErrorInfo always, the others where they apply."""
    message = clip(error.message, _MAX_MESSAGE)
    code = code_of(error)
    status = status_pb2.Status(code=code_pb2.Code.Value(code.name), message=message)
    _add(status, ErrorInfo(reason=clip(error.reason, 63), domain=DOMAIN, metadata=_metadata(error)))
    if error.retry_after_s is not None:
        retry = RetryInfo()
        retry.retry_delay.FromNanoseconds(round(max(0.0, error.retry_after_s) * 1e9))
        _add(status, retry)
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        _add(status, QuotaFailure(violations=[_violation(error, message)]))
    if isinstance(error, InvalidRequest) and error.violations:
        room = MAX_BYTES - len(quote(message)) - status.ByteSize()
        _add(status, _bad_request(error.violations, room))
    return status


def trailing_metadata(error: LensdError, status: status_pb2.Status) -> tuple[tuple[str, str | bytes], ...]:
    """What rides beside code and message: the details, and when to try again."""
    details = ("grpc-status-details-bin", status.SerializeToString())
    if error.retry_after_s is None:
        return (details,)
    if isinstance(error, Draining):
        # A negative pushback says: not here again. gRPC's own retry would go back to this very server,
        # and a call whose retry waits while the connection is closed never ends (seen with 1.85).
        return (details, ("grpc-retry-pushback-ms", "-1"))
    return (details, ("grpc-retry-pushback-ms", str(max(0, round(error.retry_after_s * 1000)))))


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: LensdError) -> NoReturn:
    """Ends a call with ``error``. Raises what gRPC wants raised."""
    status = to_status(error)
    await context.abort(code_of(error), status.message, trailing_metadata(error, status))


def final_code(context: "grpc.aio.ServicerContext[Any, Any]") -> str:
    """Name of the code a call was ended with; empty where none was set."""
    code: object = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    # Abort keeps the number; 0 means that nothing was set.
    return _NAMES.get(code, "") if code else ""


def clip(text: str, limit: int) -> str:
    """``text`` in at most ``limit`` UTF-8 bytes, marked where it was cut."""
    encoded = text.encode("utf-8", "replace")
    if len(encoded) <= limit:
        return encoded.decode()
    return encoded[: limit - 3].decode("utf-8", "ignore") + "..."


def _violation(error: LensdError, message: str) -> QuotaFailure.Violation:
    description = clip(message, _MAX_VALUE)
    if not isinstance(error, QuotaExceeded):
        return QuotaFailure.Violation(subject=clip(error.reason, 63), description=description)
    return QuotaFailure.Violation(
        subject=clip(error.caller, _MAX_VALUE),
        description=description,
        quota_id=error.quota,
        quota_value=round(error.limit),
    )


def _metadata(error: LensdError) -> dict[str, str]:
    kept: dict[str, str] = {}
    room = _MAX_METADATA
    for key, value in error.metadata.items():
        clipped = clip(str(value), _MAX_VALUE)
        room -= len(key.encode("utf-8", "replace")) + len(clipped.encode())
        if room < 0:
            break
        kept[clip(key, 64)] = clipped
    return kept


def _bad_request(violations: tuple[FieldViolation, ...], room: int) -> BadRequest:
    request = BadRequest()
    # The envelope and the line that counts the rest.
    room -= 200
    for index, violation in enumerate(violations):
        line = BadRequest.FieldViolation(
            field=clip(violation.field, _MAX_VALUE), description=clip(violation.description, 2 * _MAX_VALUE)
        )
        room -= line.ByteSize() + 4
        if room < 0:
            request.field_violations.add(description=f"and {len(violations) - index} more violations")
            break
        request.field_violations.append(line)
    return request


def _add(status: status_pb2.Status, detail: Message) -> None:
    packed = AnyMessage()
    packed.Pack(detail)
    status.details.append(packed)
