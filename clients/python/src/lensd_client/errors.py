"""Every error this client raises on purpose.

::

    LensdError                    .code .reason .message .metadata .retry_after_s
    ├── InvalidArgument           INVALID_ARGUMENT     .violations say where
    ├── NotFound                  NOT_FOUND
    ├── FailedPrecondition        FAILED_PRECONDITION  works elsewhere or later, not here and now
    ├── ResourceExhausted         RESOURCE_EXHAUSTED   .retry_after_s, when trying again helps
    ├── Unavailable               UNAVAILABLE          .retry_after_s likewise
    │   └── ServerUnavailable     … nothing answers at the target, or the call broke off
    ├── DeadlineExceeded          DEADLINE_EXCEEDED
    ├── Cancelled                 CANCELLED            by this client or by an operator
    ├── PermissionDenied          PERMISSION_DENIED
    ├── Unauthenticated           UNAUTHENTICATED
    ├── Unimplemented             UNIMPLEMENTED        the server is older than this client
    ├── Internal                  INTERNAL             the server's fault or a plugin's
    └── StreamError               DATA_LOSS            what arrived must not be trusted
        ├── TruncatedStream       … ended without `completed`
        ├── SequenceGap           … events are missing or out of order
        ├── MissingPart           … a result is incomplete
        └── ChecksumMismatch      … bytes of a tensor changed on the way

A status this client has no class for is a plain ``LensdError``. ``code`` is the name of the
gRPC status, ``reason`` the server's stable upper-snake identifier, which callers may switch
on. Wrong use of the client itself raises ``TypeError`` or ``ValueError``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing wrong with one field; ``field`` is a path such as ``prompts[3].text``."""

    field: str
    description: str


class LensdError(Exception):
    """Base of all errors of an analysis or a call.

    ``metadata`` holds what the server adds for programs; ``retry_after_s`` the seconds after
    which trying again makes sense, ``None`` when the server did not say.
    """

    code: str = "UNKNOWN"
    default_reason: ClassVar[str] = ""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        reason: str = "",
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        self.reason = reason or self.default_reason or self.code
        self.metadata: dict[str, str] = dict(metadata or {})
        self.violations: tuple[FieldViolation, ...] = tuple(violations)
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        lines = [self.message]
        lines += [f"  {v.field}: {v.description}" for v in self.violations if not self._says(v)]
        if self.retry_after_s is not None:
            lines.append(f"  try again in {self.retry_after_s:g} s")
        return "\n".join(lines)

    def _says(self, violation: FieldViolation) -> bool:
        return violation.description in self.message


class InvalidArgument(LensdError):
    """The request can never work as it is; ``violations`` say what is wrong where."""

    code = "INVALID_ARGUMENT"


class NotFound(LensdError):
    """The model, analyzer, artifact or service named in the request does not exist."""

    code = "NOT_FOUND"


class FailedPrecondition(LensdError):
    """The request is sound but cannot be served in the present state."""

    code = "FAILED_PRECONDITION"


class ResourceExhausted(LensdError):
    """A limit, a quota or the device's memory is used up."""

    code = "RESOURCE_EXHAUSTED"


class Unavailable(LensdError):
    """Not now: the server is shutting down or a model cannot be loaded."""

    code = "UNAVAILABLE"


class ServerUnavailable(Unavailable):
    """Nothing answers at the target, or the connection to it or the call was broken off."""

    default_reason = "SERVER_UNAVAILABLE"


class DeadlineExceeded(LensdError):
    """``timeout_s`` passed before the analysis or call was done."""

    code = "DEADLINE_EXCEEDED"


class Cancelled(LensdError):
    """The analysis or call was cancelled, here or by an operator."""

    code = "CANCELLED"


class PermissionDenied(LensdError):
    """The caller is known but may not do this."""

    code = "PERMISSION_DENIED"


class Unauthenticated(LensdError):
    """The server wants to know who calls, and does not."""

    code = "UNAUTHENTICATED"


class Unimplemented(LensdError):
    """The server does not have this method: it is older, or not lensd."""

    code = "UNIMPLEMENTED"


class Internal(LensdError):
    """A fault of the server or a plugin; its log has the rest under the error id."""

    code = "INTERNAL"


class StreamError(LensdError):
    """The stream broke its own rules: what has arrived must not be trusted."""

    code = "DATA_LOSS"


class TruncatedStream(StreamError):
    """The stream ended without ``completed``."""

    default_reason = "TRUNCATED_STREAM"


class SequenceGap(StreamError):
    """Events are missing, repeated or out of order."""

    default_reason = "SEQUENCE_GAP"


class MissingPart(StreamError):
    """Parts of a result or chunks of a tensor are missing or contradict each other."""

    default_reason = "MISSING_PART"


class ChecksumMismatch(StreamError):
    """The bytes of a tensor are not those the server sent."""

    default_reason = "CHECKSUM_MISMATCH"
