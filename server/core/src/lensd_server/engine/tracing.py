"""The span of the request that code works for, where requests are traced.

Known by a context variable, so that no layer hands it on: tasks and worker threads inherit it. Nothing
here knows OpenTelemetry, and without tracing the variable is never set.
"""

from contextvars import ContextVar
from typing import Any

#: An OpenTelemetry span, or ``None``.
CURRENT_SPAN: ContextVar[Any | None] = ContextVar("lensd_span", default=None)
