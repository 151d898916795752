"""Events and values as JSON: the contract of ``lensctl --json``, one object a line.

NaN and infinities become null, so that every line is JSON for everybody.
"""

import dataclasses
import json
import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, cast

import numpy as np

from lensd_client.errors import LensdError
from lensd_client.events import Accepted, Completed, Event, PartEvent, Progress, ResultEvent, Warned
from lensd_client.results import AnnotatedText, Graph, Record, Table, Tensor, Value


def event_object(event: Event, request_id: str) -> dict[str, Any] | None:
    """The object of one event; None for a part, since results are printed whole."""
    match event:
        case PartEvent():
            return None
        case ResultEvent():
            named = {"name": event.name, "title": event.title, "item": event.item}
            return {"event": "result", "request_id": request_id, **named, **value_object(event.value)}
        case Accepted():
            kind = "accepted"
        case Progress():
            kind = "progress"
        case Warned():
            kind = "warning"
        case Completed():
            kind = "completed"
    fields = {name: getattr(event, name) for name in event.__slots__ if name != "checksums"}
    return {"event": kind, "request_id": request_id, **fields}


def value_object(value: Value | LensdError) -> dict[str, Any]:
    """One key, the kind of the value: table, tensor, graph, record, text or error."""
    match value:
        case Table():
            return {"table": {"columns": value.to_dict(), "units": dict(value.units)}}
        case Tensor():
            return {"tensor": _tensor(value)}
        case Graph():
            return {"graph": value.to_dict()}
        case Record():
            return {"record": value.to_dict()}
        case AnnotatedText():
            return {"text": value.to_dict()}
        case LensdError():
            return {"error": error_fields(value)}


def error_object(error: LensdError, request_id: str) -> dict[str, Any]:
    """The object of an analysis that failed."""
    return {"event": "error", "request_id": request_id, **error_fields(error)}


def error_fields(error: LensdError) -> dict[str, Any]:
    """Code, reason, message and violations; ``retry_after_s`` is null when unknown."""
    return {
        "code": error.code,
        "reason": error.reason,
        "message": error.message,
        "violations": [{"field": v.field, "description": v.description} for v in error.violations],
        "metadata": error.metadata,
        "retry_after_s": error.retry_after_s,
    }


def dumps(value: Any, *, indent: int | None = None) -> str:
    """JSON of values, dataclasses and NumPy numbers, with null for what is not finite."""
    return json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)


def plain(value: Any) -> Any:
    """``value`` in JSON's own types."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(key): plain(v) for key, v in cast("Mapping[Any, Any]", value).items()}
        case list() | tuple():
            return [plain(v) for v in cast("list[Any]", value)]
        case np.ndarray() | np.generic():
            return plain(value.tolist())
        case datetime():
            return value.isoformat()
        case _ if dataclasses.is_dataclass(value):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        case _:
            return value


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {
        "dtype": tensor.dtype or tensor.array.dtype.name,
        "shape": list(tensor.shape),
        "axes": list(tensor.axes),
        "labels": {axis: list(names) for axis, names in tensor.labels.items()},
        "unit": tensor.unit,
        "data": tensor.array.tolist(),
    }
