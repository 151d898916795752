import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import struct_pb2 as _struct_pb2
from google.rpc import status_pb2 as _status_pb2
from lensd_proto.v1 import models_pb2 as _models_pb2
from lensd_proto.v1 import results_pb2 as _results_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
    PRIORITY_BATCH: _ClassVar[Priority]
PRIORITY_UNSPECIFIED: Priority
PRIORITY_INTERACTIVE: Priority
PRIORITY_BATCH: Priority

class AnalyzeRequest(_message.Message):
    __slots__ = ("request_id", "model", "analyzer", "params", "tensors", "priority", "timeout")
    class TensorsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _results_pb2.Tensor
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_results_pb2.Tensor, _Mapping]] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ANALYZER_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    TENSORS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    analyzer: str
    params: _struct_pb2.Struct
    tensors: _containers.MessageMap[str, _results_pb2.Tensor]
    priority: Priority
    timeout: _duration_pb2.Duration
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., analyzer: _Optional[str] = ..., params: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., tensors: _Optional[_Mapping[str, _results_pb2.Tensor]] = ..., priority: _Optional[_Union[Priority, str]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class AnalyzeResponse(_message.Message):
    __slots__ = ("request_id", "sequence", "accepted", "progress", "result", "tensor_chunk", "warning", "completed", "failed")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    TENSOR_CHUNK_FIELD_NUMBER: _ClassVar[int]
    WARNING_FIELD_NUMBER: _ClassVar[int]
    COMPLETED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    sequence: int
    accepted: Accepted
    progress: Progress
    result: _results_pb2.Result
    tensor_chunk: _results_pb2.TensorChunk
    warning: Warning
    completed: Completed
    failed: Failed
    def __init__(self, request_id: _Optional[str] = ..., sequence: _Optional[int] = ..., accepted: _Optional[_Union[Accepted, _Mapping]] = ..., progress: _Optional[_Union[Progress, _Mapping]] = ..., result: _Optional[_Union[_results_pb2.Result, _Mapping]] = ..., tensor_chunk: _Optional[_Union[_results_pb2.TensorChunk, _Mapping]] = ..., warning: _Optional[_Union[Warning, _Mapping]] = ..., completed: _Optional[_Union[Completed, _Mapping]] = ..., failed: _Optional[_Union[Failed, _Mapping]] = ...) -> None: ...

class AnalyzeManyRequest(_message.Message):
    __slots__ = ("start", "cancel")
    START_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    start: AnalyzeRequest
    cancel: Cancel
    def __init__(self, start: _Optional[_Union[AnalyzeRequest, _Mapping]] = ..., cancel: _Optional[_Union[Cancel, _Mapping]] = ...) -> None: ...

class AnalyzeManyResponse(_message.Message):
    __slots__ = ("response",)
    RESPONSE_FIELD_NUMBER: _ClassVar[int]
    response: AnalyzeResponse
    def __init__(self, response: _Optional[_Union[AnalyzeResponse, _Mapping]] = ...) -> None: ...

class Cancel(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class Accepted(_message.Message):
    __slots__ = ("analyzer", "analyzer_version", "distribution", "model", "model_state", "model_revision", "queue_position")
    ANALYZER_FIELD_NUMBER: _ClassVar[int]
    ANALYZER_VERSION_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MODEL_STATE_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    QUEUE_POSITION_FIELD_NUMBER: _ClassVar[int]
    analyzer: str
    analyzer_version: str
    distribution: str
    model: str
    model_state: _models_pb2.ModelState
    model_revision: str
    queue_position: int
    def __init__(self, analyzer: _Optional[str] = ..., analyzer_version: _Optional[str] = ..., distribution: _Optional[str] = ..., model: _Optional[str] = ..., model_state: _Optional[_Union[_models_pb2.ModelState, str]] = ..., model_revision: _Optional[str] = ..., queue_position: _Optional[int] = ...) -> None: ...

class Progress(_message.Message):
    __slots__ = ("stage", "done", "total", "unit", "detail")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    stage: str
    done: float
    total: float
    unit: str
    detail: str
    def __init__(self, stage: _Optional[str] = ..., done: _Optional[float] = ..., total: _Optional[float] = ..., unit: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class Warning(_message.Message):
    __slots__ = ("reason", "message", "item")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    item: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ..., item: _Optional[str] = ...) -> None: ...

class Completed(_message.Message):
    __slots__ = ("events", "results", "warnings", "checksums", "model_revision", "usage")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    events: int
    results: int
    warnings: int
    checksums: _containers.RepeatedCompositeFieldContainer[TensorChecksum]
    model_revision: str
    usage: Usage
    def __init__(self, events: _Optional[int] = ..., results: _Optional[int] = ..., warnings: _Optional[int] = ..., checksums: _Optional[_Iterable[_Union[TensorChecksum, _Mapping]]] = ..., model_revision: _Optional[str] = ..., usage: _Optional[_Union[Usage, _Mapping]] = ...) -> None: ...

class TensorChecksum(_message.Message):
    __slots__ = ("name", "item", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ITEM_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    item: str
    sha256: str
    def __init__(self, name: _Optional[str] = ..., item: _Optional[str] = ..., sha256: _Optional[str] = ...) -> None: ...

class Usage(_message.Message):
    __slots__ = ("queue_seconds", "forward_seconds", "compute_seconds", "total_seconds", "rows", "tokens", "shared_rows", "peak_capture_bytes", "largest_batch", "reused_tokens")
    QUEUE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_SECONDS_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    SHARED_ROWS_FIELD_NUMBER: _ClassVar[int]
    PEAK_CAPTURE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LARGEST_BATCH_FIELD_NUMBER: _ClassVar[int]
    REUSED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    queue_seconds: float
    forward_seconds: float
    compute_seconds: float
    total_seconds: float
    rows: int
    tokens: int
    shared_rows: int
    peak_capture_bytes: int
    largest_batch: int
    reused_tokens: int
    def __init__(self, queue_seconds: _Optional[float] = ..., forward_seconds: _Optional[float] = ..., compute_seconds: _Optional[float] = ..., total_seconds: _Optional[float] = ..., rows: _Optional[int] = ..., tokens: _Optional[int] = ..., shared_rows: _Optional[int] = ..., peak_capture_bytes: _Optional[int] = ..., largest_batch: _Optional[int] = ..., reused_tokens: _Optional[int] = ...) -> None: ...

class Failed(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: _status_pb2.Status
    def __init__(self, status: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...
