"""From a gRPC status to one of this client's errors: the one place where that is decided."""

from collections.abc import Iterable
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import (  # pyright: ignore[reportMissingTypeStubs]
    code_pb2,
    error_details_pb2,
    status_pb2,
)

from lensd_client import errors
from lensd_client.errors import FieldViolation, LensdError

_DETAILS_KEY = "grpc-status-details-bin"
_PUSHBACK_KEY = "grpc-retry-pushback-ms"
#: What gRPC says, in lower case, of calls that this client cancelled, or closed the channel of.
_OWN_CANCELS = ("locally cancelled", "channel closed")

_CLASSES: dict[str, type[LensdError]] = {
    kind.code: kind
    for kind in (
        errors.InvalidArgument,
        errors.NotFound,
        errors.FailedPrecondition,
        errors.ResourceExhausted,
        errors.Unavailable,
        errors.DeadlineExceeded,
        errors.Cancelled,
        errors.PermissionDenied,
        errors.Unauthenticated,
        errors.Unimplemented,
        errors.Internal,
        errors.StreamError,
    )
}


def error_from_status(status: status_pb2.Status) -> LensdError:
    """The error that a ``google.rpc.Status`` describes, with all that its details say."""
    reason = ""
    metadata: dict[str, str] = {}
    violations: list[FieldViolation] = []
    retry_after_s: float | None = None
    for detail in status.details:
        info = error_details_pb2.ErrorInfo()
        request = error_details_pb2.BadRequest()
        quota = error_details_pb2.QuotaFailure()
        retry = error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
            metadata.update(info.metadata)
        elif detail.Unpack(request):
            violations += [FieldViolation(v.field, v.description) for v in request.field_violations]
        elif detail.Unpack(quota):
            violations += [FieldViolation(v.subject, v.description) for v in quota.violations]
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToTimedelta().total_seconds()
    code = code_name(status.code)
    return _CLASSES.get(code, LensdError)(
        status.message or code,
        code=code,
        reason=reason,
        metadata=metadata,
        violations=violations,
        retry_after_s=retry_after_s,
    )


def code_name(code: int) -> str:
    """Upper-case name of a status number; ``UNKNOWN`` for one nobody knows."""
    return code_pb2.Code.Name(code) if code in code_pb2.Code.values() else "UNKNOWN"


def error_from_call(error: grpc.RpcError, target: str) -> LensdError:
    """The error behind a failed call to ``target``, sync or aio.

    A status without details was made by gRPC itself, not by a lensd server: it says where the
    connection failed and what to do.
    """
    call: Any = error
    code: str = call.code().name
    message: str = call.details() or ""
    trailing = _pairs(call.trailing_metadata())
    rich = trailing.get(_DETAILS_KEY)
    if isinstance(rich, bytes):
        status = status_pb2.Status()
        try:
            status.ParseFromString(rich)
        except DecodeError:  # a proxy garbled it; the plain status is left
            status = status_pb2.Status()
        if status.code == call.code().value[0]:
            return error_from_status(status)
    told = pushback(error)
    retry_after_s = told if told is not None and told >= 0 else None
    if code == "UNAVAILABLE":
        return errors.ServerUnavailable(_unreachable(target, message), retry_after_s=retry_after_s)
    if code == "DEADLINE_EXCEEDED":
        message = f"the time given was up before {target} was done"
    if is_broken_off(error):
        return errors.ServerUnavailable(
            f"{target} broke the call off: is it shutting down, or a proxy before it?"
        )
    if code == "CANCELLED":
        message = "cancelled by this client"
    if code == "UNIMPLEMENTED":
        message = f"{target} does not offer this method: {message or 'is it a lensd server?'}"
    return _CLASSES.get(code, LensdError)(message or code, code=code, retry_after_s=retry_after_s)


def is_broken_off(error: Any) -> bool:
    """Whether a call was cancelled by nobody who says so: not this client, nor a lensd server, which gives details.

    gRPC ends in this way what reaches a server in the moment in which it stops.
    """
    if error.code().name != "CANCELLED" or _DETAILS_KEY in _pairs(error.trailing_metadata()):
        return False
    details = (error.details() or "").lower()
    return not any(own in details for own in _OWN_CANCELS)


def _pairs(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str | bytes]:
    return dict(list(metadata or ()))


def pushback(error: Any) -> float | None:
    """Seconds the server asks to wait, None when it does not say; negative: do not try again here."""
    value = _pairs(error.trailing_metadata()).get(_PUSHBACK_KEY)
    if value is None:
        return None
    text = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return int(text) / 1000 if text.isascii() and text.isdigit() else -1.0


#: What TLS says, in lower case, and what that means to whoever connects.
_TLS_FAILURES = (
    ("certificate has expired", "the server's certificate has expired: its operator has to replace it"),
    (
        "certificate is not yet valid",
        "the server's certificate is not valid yet: is this machine's clock right?",
    ),
    (
        "hostname verification",
        "the server's certificate is for another name: connect by a name that it is for",
    ),
    (
        "not in peer certificate",
        "the server's certificate is for another name: connect by a name that it is for",
    ),
    (
        "certificate_verify_failed",
        "the server's certificate is signed by none of those in `ca`: is that its CA?",
    ),
    ("wrong_version_number", "it does not speak TLS: leave `ca`, `tls`, `cert` and `key` out"),
)


def _unreachable(target: str, details: str) -> str:
    lowered = details.lower()
    broke = any(word in lowered for word in ("socket closed", "connection reset", "goaway"))
    if "failed to connect" in lowered and broke:
        return (
            f"{target} hangs up: is it a lensd server, and does it want TLS (`ca` or `tls`), or a certificate of this "
            "client that it trusts (`cert` and `key`)?"
        )
    if broke:
        return f"the connection to {target} broke: {details}; is the server still up?"
    for sign, meaning in _TLS_FAILURES:
        if sign in lowered:
            return f"no TLS connection to {target}: {meaning}"
    if any(word in lowered for word in ("ssl", "tls", "handshake", "certificate", "tsi")):
        return f"no TLS connection to {target}: {details}; check `ca`, `cert` and `key`, or whether it speaks TLS"
    return (
        f"nothing answers at {target} ({details.rpartition(': ')[2] or 'unavailable'}): "
        "start a server with `lensd serve`, or give the address of one as the target"
    )
