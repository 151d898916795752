"""Which trace a measurement belongs to, so that a slow point on a dashboard leads to one.

The trace id of the caller's ``traceparent`` header (W3C Trace Context) travels in a context variable
from the call to the analysis loop. Invariant: an exemplar holds 32 hexadecimal digits and nothing else
that a caller sent, and only of traces that are recorded somewhere.
"""

import re
from collections.abc import Iterable
from contextvars import ContextVar

HEADER = "traceparent"
_SAMPLED = 0x01
_PARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(?:-.*)?")

_trace_id: ContextVar[str] = ContextVar("lensd_trace_id", default="")


def sampled_trace(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The id of the trace that a call with this ``metadata`` is part of; empty when none is recorded."""
    for key, value in metadata:
        if key == HEADER and isinstance(value, str) and (parent := _PARENT.fullmatch(value)):
            return parent[1] if int(parent[2], 16) & _SAMPLED else ""
    return ""


def belongs_to(trace_id: str) -> None:
    """What is measured from here on, in this context and those made from it, is of this trace."""
    _trace_id.set(trace_id)


def exemplar() -> dict[str, str] | None:
    """What to observe a value with."""
    trace_id = _trace_id.get()
    return {"trace_id": trace_id} if trace_id else None
