import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetServerInfoResponse(_message.Message):
    __slots__ = ("version", "api_version", "libraries", "start_time", "limits", "features", "devices")
    class LibrariesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    VERSION_FIELD_NUMBER: _ClassVar[int]
    API_VERSION_FIELD_NUMBER: _ClassVar[int]
    LIBRARIES_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    version: str
    api_version: str
    libraries: _containers.ScalarMap[str, str]
    start_time: _timestamp_pb2.Timestamp
    limits: Limits
    features: _containers.RepeatedScalarFieldContainer[str]
    devices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[str] = ..., api_version: _Optional[str] = ..., libraries: _Optional[_Mapping[str, str]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., features: _Optional[_Iterable[str]] = ..., devices: _Optional[_Iterable[str]] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_request_bytes", "max_response_bytes", "max_analyses", "max_analyses_per_stream", "max_queued_rows", "max_timeout", "max_admitted_tokens", "max_admitted_bytes", "caller_share", "max_streams_per_caller", "send_timeout", "max_artifact_bytes", "quota", "max_artifacts_bytes")
    MAX_REQUEST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_RESPONSE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_ANALYSES_FIELD_NUMBER: _ClassVar[int]
    MAX_ANALYSES_PER_STREAM_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_ROWS_FIELD_NUMBER: _ClassVar[int]
    MAX_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    MAX_ADMITTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_ADMITTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CALLER_SHARE_FIELD_NUMBER: _ClassVar[int]
    MAX_STREAMS_PER_CALLER_FIELD_NUMBER: _ClassVar[int]
    SEND_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    MAX_ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    MAX_ARTIFACTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    max_request_bytes: int
    max_response_bytes: int
    max_analyses: int
    max_analyses_per_stream: int
    max_queued_rows: int
    max_timeout: _duration_pb2.Duration
    max_admitted_tokens: int
    max_admitted_bytes: int
    caller_share: float
    max_streams_per_caller: int
    send_timeout: _duration_pb2.Duration
    max_artifact_bytes: int
    quota: Quota
    max_artifacts_bytes: int
    def __init__(self, max_request_bytes: _Optional[int] = ..., max_response_bytes: _Optional[int] = ..., max_analyses: _Optional[int] = ..., max_analyses_per_stream: _Optional[int] = ..., max_queued_rows: _Optional[int] = ..., max_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_admitted_tokens: _Optional[int] = ..., max_admitted_bytes: _Optional[int] = ..., caller_share: _Optional[float] = ..., max_streams_per_caller: _Optional[int] = ..., send_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., max_artifact_bytes: _Optional[int] = ..., quota: _Optional[_Union[Quota, _Mapping]] = ..., max_artifacts_bytes: _Optional[int] = ...) -> None: ...

class Quota(_message.Message):
    __slots__ = ("max_analyses", "tokens_per_minute", "bytes_per_minute", "rows_per_minute")
    MAX_ANALYSES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    ROWS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    max_analyses: int
    tokens_per_minute: int
    bytes_per_minute: int
    rows_per_minute: int
    def __init__(self, max_analyses: _Optional[int] = ..., tokens_per_minute: _Optional[int] = ..., bytes_per_minute: _Optional[int] = ..., rows_per_minute: _Optional[int] = ...) -> None: ...

class GetLoadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetLoadResponse(_message.Message):
    __slots__ = ("analyses", "draining", "models")
    ANALYSES_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    analyses: int
    draining: bool
    models: _containers.RepeatedCompositeFieldContainer[ModelLoad]
    def __init__(self, analyses: _Optional[int] = ..., draining: _Optional[bool] = ..., models: _Optional[_Iterable[_Union[ModelLoad, _Mapping]]] = ...) -> None: ...

class ModelLoad(_message.Message):
    __slots__ = ("model", "queued_rows", "queued_tokens", "leases")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    QUEUED_ROWS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LEASES_FIELD_NUMBER: _ClassVar[int]
    model: str
    queued_rows: int
    queued_tokens: int
    leases: int
    def __init__(self, model: _Optional[str] = ..., queued_rows: _Optional[int] = ..., queued_tokens: _Optional[int] = ..., leases: _Optional[int] = ...) -> None: ...

class ListAnalysesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAnalysesResponse(_message.Message):
    __slots__ = ("analyses",)
    ANALYSES_FIELD_NUMBER: _ClassVar[int]
    analyses: _containers.RepeatedCompositeFieldContainer[RunningAnalysis]
    def __init__(self, analyses: _Optional[_Iterable[_Union[RunningAnalysis, _Mapping]]] = ...) -> None: ...

class RunningAnalysis(_message.Message):
    __slots__ = ("request_id", "analyzer", "model", "age", "pending_rows", "peer", "identity")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ANALYZER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    AGE_FIELD_NUMBER: _ClassVar[int]
    PENDING_ROWS_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    analyzer: str
    model: str
    age: _duration_pb2.Duration
    pending_rows: int
    peer: str
    identity: str
    def __init__(self, request_id: _Optional[str] = ..., analyzer: _Optional[str] = ..., model: _Optional[str] = ..., age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., pending_rows: _Optional[int] = ..., peer: _Optional[str] = ..., identity: _Optional[str] = ...) -> None: ...

class CancelAnalysisRequest(_message.Message):
    __slots__ = ("request_id",)
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    def __init__(self, request_id: _Optional[str] = ...) -> None: ...

class CancelAnalysisResponse(_message.Message):
    __slots__ = ("cancelled",)
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    cancelled: bool
    def __init__(self, cancelled: _Optional[bool] = ...) -> None: ...
