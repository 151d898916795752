"""The caller's trace, where it has one: the server's spans then continue it (W3C trace context).

A program that traces has imported OpenTelemetry; any other pays one look.
"""

import importlib
import sys
from typing import Any


def trace_metadata() -> tuple[tuple[str, str], ...]:
    """``traceparent`` and what belongs to it; empty outside a trace."""
    if "opentelemetry.trace" not in sys.modules:
        return ()
    propagate: Any = importlib.import_module("opentelemetry.propagate")
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    # gRPC wants lower case.
    return tuple((key.lower(), value) for key, value in carrier.items())
