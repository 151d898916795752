"""What a caller asks for, and the message it becomes."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from google.protobuf import duration_pb2

from lensd_client._structs import to_struct
from lensd_proto.v1 import analysis_pb2, results_pb2

#: How urgent an analysis is: somebody waits, or it may wait for those.
Priority = Literal["interactive", "batch"]

#: Seconds, some thirty years: longer ones overflow somewhere on the way.
MAX_TIMEOUT_S = 1e9

_PRIORITIES = {
    "interactive": analysis_pb2.PRIORITY_INTERACTIVE,
    "batch": analysis_pb2.PRIORITY_BATCH,
}
#: By name; protobuf accepts names for numbers as well.
_DATA_TYPES = frozenset(results_pb2.DataType.keys())
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Request:
    """One analysis to run, for ``analyze_many``; the fields are those of ``analyze``.

    ``timeout_s`` counts from when the server receives it, waiting included.
    """

    analyzer: str
    model: str = ""
    params: Mapping[str, Any] = field(default_factory=dict[str, Any])
    tensors: Mapping[str, Any] = field(default_factory=dict[str, Any])
    priority: Priority = "interactive"
    timeout_s: float | None = None
    request_id: str | None = None


def merge_params(params: Mapping[str, Any] | None, keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters given as a mapping and as keywords. Raises TypeError for one given twice."""
    twice = sorted(set(params or ()) & set(keywords))
    if twice:
        raise TypeError(f"given in `params` and as keywords: {', '.join(twice)}")
    return {**(params or {}), **keywords}


def to_message(request: Request) -> analysis_pb2.AnalyzeRequest:
    """The message. Raises TypeError or ValueError for what cannot be sent, naming the place."""
    if request.priority not in _PRIORITIES:
        raise ValueError(f"priority is 'interactive' or 'batch', not {request.priority!r}")
    if request.request_id and not _REQUEST_ID.fullmatch(request.request_id):
        raise ValueError(
            f"request_id {request.request_id!r}: at most 128 letters, digits and any of . _ : - are allowed"
        )
    return analysis_pb2.AnalyzeRequest(
        request_id=request.request_id or "",
        model=request.model,
        analyzer=request.analyzer,
        params=to_struct(request.params),
        tensors={name: to_tensor(name, value) for name, value in request.tensors.items()},
        priority=_PRIORITIES[request.priority],
        timeout=None if request.timeout_s is None else duration(request.timeout_s),
    )


def duration(seconds: float) -> duration_pb2.Duration:
    """Seconds as a Duration. Raises ValueError unless positive and at most :data:`MAX_TIMEOUT_S`."""
    if not 0 < seconds <= MAX_TIMEOUT_S:
        raise ValueError(
            f"timeout_s must be positive and at most {MAX_TIMEOUT_S:.0e}, not {seconds:g}; "
            "leave it out to wait as long as it takes"
        )
    whole = int(seconds)
    return duration_pb2.Duration(seconds=whole, nanos=int((seconds - whole) * 1e9))


def to_tensor(name: str, value: Any) -> results_pb2.Tensor:
    """Anything ``numpy.asarray`` takes, as a message. Raises TypeError for other element types."""
    array = np.asarray(value)
    kind = f"DATA_TYPE_{array.dtype.name.upper()}"
    if kind not in _DATA_TYPES:
        raise TypeError(f"tensors[{name!r}]: {array.dtype} cannot be sent; convert it to float32 or int64")
    swap = array.dtype.byteorder == ">" or (sys.byteorder == "big" and array.dtype.byteorder == "=")
    data = (array.astype(array.dtype.newbyteorder("<")) if swap else array).tobytes()
    return results_pb2.Tensor(dtype=kind, shape=array.shape, data=data, byte_length=len(data))
