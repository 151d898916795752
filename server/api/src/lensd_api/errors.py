"""Every error lensd raises on purpose.

::

    LensdError
    ├── InvalidRequest            INVALID_ARGUMENT     the caller's fault, will never work
    │   ├── InvalidParams         … with field violations
    │   └── InvalidTensor
    ├── NotFound                  NOT_FOUND
    │   ├── UnknownModel, UnknownAnalyzer, UnknownArtifact
    ├── FailedPrecondition        FAILED_PRECONDITION  works elsewhere or later, not here and now
    │   ├── RequirementNotMet
    │   ├── AnalysisError         an analyzer refuses to give a wrong answer
    ├── Exhausted                 RESOURCE_EXHAUSTED
    │   ├── QueueFull, DeviceOutOfMemory, TooLarge
    │   └── QuotaExceeded         … one caller has used up what it may
    │       └── CallerShareTaken  … of what the server has for all
    ├── Unavailable               UNAVAILABLE          try again
    │   ├── Draining, LoadFailed, DeviceLost
    ├── DeadlineExceeded          DEADLINE_EXCEEDED
    ├── Cancelled                 CANCELLED
    ├── Unauthenticated           UNAUTHENTICATED      nobody knows who calls
    ├── PermissionDenied          PERMISSION_DENIED    it is known, and not enough
    └── Internal                  INTERNAL             our fault or a plugin's
        ├── PluginFailure         … with an error id; the log has the rest
        └── InvalidResult         … what an analyzer yielded cannot be sent

``status`` is the name of the gRPC status code, ``reason`` a stable upper-snake identifier that
callers may switch on. The message says what failed, with the values, and what to do about it;
it is shown to callers, so it never holds another exception's text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One thing wrong with one field: ``field`` is a path such as ``prompts[3].text``."""

    field: str
    description: str


class LensdError(Exception):
    """Base of all errors raised on purpose. ``metadata`` travels in ``ErrorInfo``."""

    status: ClassVar[str] = "INTERNAL"
    reason: str = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata: dict[str, str] = dict(metadata or {})
        #: Seconds after which trying again makes sense; ``None`` when it does not.
        self.retry_after_s = retry_after_s
        if reason is not None:
            self.reason = reason


class InvalidRequest(LensdError):
    """The request can never work as it is. ``violations`` say where."""

    status = "INVALID_ARGUMENT"
    reason = "INVALID_REQUEST"

    def __init__(
        self,
        message: str,
        *,
        violations: Sequence[FieldViolation] = (),
        reason: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, reason=reason, metadata=metadata)
        self.violations = tuple(violations)


class InvalidParams(InvalidRequest):
    """Parameters do not match the analyzer's schema, or each other."""

    reason = "INVALID_PARAMS"

    @classmethod
    def field(cls, field: str, description: str, *, reason: str | None = None) -> "InvalidParams":
        """One violation: the shortest way for an analyzer to refuse a value."""
        return cls(f"{field}: {description}", violations=[FieldViolation(field, description)], reason=reason)


class InvalidTensor(InvalidRequest):
    """A tensor of the request is malformed or of the wrong shape."""

    reason = "INVALID_TENSOR"


class NotFound(LensdError):
    """What the request names does not exist."""

    status = "NOT_FOUND"
    reason = "NOT_FOUND"


class UnknownModel(NotFound):
    """No such model is configured."""

    reason = "UNKNOWN_MODEL"


class UnknownAnalyzer(NotFound):
    """No such analyzer is installed and working."""

    reason = "UNKNOWN_ANALYZER"


class UnknownArtifact(NotFound):
    """No such artifact is stored."""

    reason = "UNKNOWN_ARTIFACT"


class FailedPrecondition(LensdError):
    """The request is sound but cannot be served in the present state."""

    status = "FAILED_PRECONDITION"
    reason = "FAILED_PRECONDITION"


class RequirementNotMet(FailedPrecondition):
    """The model cannot serve this analyzer or these parameters."""

    reason = "REQUIREMENT_NOT_MET"


class AnalysisError(FailedPrecondition):
    """An analyzer refuses to return numbers that would be wrong."""

    reason = "ANALYSIS_ERROR"


class Exhausted(LensdError):
    """A limit was reached."""

    status = "RESOURCE_EXHAUSTED"
    reason = "RESOURCE_EXHAUSTED"


class QueueFull(Exhausted):
    """Too much is waiting already; try again later."""

    reason = "QUEUE_FULL"


class DeviceOutOfMemory(Exhausted):
    """The device ran out of memory for this request."""

    reason = "DEVICE_OOM"


class TooLarge(Exhausted):
    """The request needs more than the server will ever give one request."""

    reason = "TOO_LARGE"


class QuotaExceeded(Exhausted):
    """A caller has used up what it may; others have not.

    ``caller`` is its identity, or its address where callers have none; ``quota`` names the setting that
    bounds it, ``limit`` is the bound.
    """

    reason = "QUOTA_EXCEEDED"

    def __init__(self, *, caller: str, quota: str, limit: float, unit: str, retry_after_s: float) -> None:
        super().__init__(
            f"{caller} has used up its {quota} of {limit:g} {unit}; try again in {retry_after_s:.1f} s",
            metadata={"caller": caller, "quota": quota, "limit": f"{limit:g}"},
            retry_after_s=retry_after_s,
        )
        self.caller, self.quota, self.limit = caller, quota, limit


class CallerShareTaken(QuotaExceeded):
    """A caller has taken its share of the server's own limits: more is asked for than the server can do.

    Unlike a quota, which an operator set to be met, it is a sign of overload where one caller sends most.
    """

    reason = "CALLER_SHARE"

    def __init__(self, *, caller: str, limit: float, unit: str, retry_after_s: float) -> None:
        super().__init__(
            caller=caller,
            quota="limits.caller_share",
            limit=limit,
            unit=unit,
            retry_after_s=retry_after_s,
        )


class Unavailable(LensdError):
    """Not now; trying again may help."""

    status = "UNAVAILABLE"
    reason = "UNAVAILABLE"


class Draining(Unavailable):
    """The server, or the model, is shutting down."""

    reason = "DRAINING"


class LoadFailed(Unavailable):
    """The model could not be loaded."""

    reason = "LOAD_FAILED"


class DeviceLost(Unavailable):
    """The device failed in a way that only a new process can mend; the server drains and is started anew."""

    reason = "DEVICE_LOST"


class DeadlineExceeded(LensdError):
    """The caller's time is up."""

    status = "DEADLINE_EXCEEDED"
    reason = "DEADLINE_EXCEEDED"


class Cancelled(LensdError):
    """The caller, or an operator, cancelled the analysis."""

    status = "CANCELLED"
    reason = "CANCELLED"


class Unauthenticated(LensdError):
    """The server wants to know who calls, and does not."""

    status = "UNAUTHENTICATED"
    reason = "UNAUTHENTICATED"


class PermissionDenied(LensdError):
    """This listener or caller may not do that."""

    status = "PERMISSION_DENIED"
    reason = "PERMISSION_DENIED"


class Internal(LensdError):
    """Not the caller's fault."""

    status = "INTERNAL"
    reason = "INTERNAL"


class PluginFailure(Internal):
    """An analyzer raised something unexpected; ``error_id`` is also in the server's log."""

    reason = "PLUGIN_FAILURE"

    def __init__(self, *, analyzer: str, error_id: str) -> None:
        super().__init__(
            f"analyzer {analyzer} failed; give the operator error id {error_id}",
            metadata={"analyzer": analyzer, "error_id": error_id},
        )
        self.error_id = error_id


class InvalidResult(Internal):
    """An analyzer yielded what no caller could read; the message says which result and why.

    The server raises it: two columns of different length, an edge to no node, a value that the
    wire has no type for. ``metadata`` holds ``analyzer`` and ``result``.
    """

    reason = "INVALID_RESULT"
