from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PluginStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PLUGIN_STATUS_UNSPECIFIED: _ClassVar[PluginStatus]
    PLUGIN_STATUS_ACTIVE: _ClassVar[PluginStatus]
    PLUGIN_STATUS_BROKEN: _ClassVar[PluginStatus]
    PLUGIN_STATUS_DISABLED: _ClassVar[PluginStatus]
    PLUGIN_STATUS_QUARANTINED: _ClassVar[PluginStatus]
PLUGIN_STATUS_UNSPECIFIED: PluginStatus
PLUGIN_STATUS_ACTIVE: PluginStatus
PLUGIN_STATUS_BROKEN: PluginStatus
PLUGIN_STATUS_DISABLED: PluginStatus
PLUGIN_STATUS_QUARANTINED: PluginStatus

class ListAnalyzersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAnalyzersResponse(_message.Message):
    __slots__ = ("analyzers", "plugins")
    ANALYZERS_FIELD_NUMBER: _ClassVar[int]
    PLUGINS_FIELD_NUMBER: _ClassVar[int]
    analyzers: _containers.RepeatedCompositeFieldContainer[Analyzer]
    plugins: _containers.RepeatedCompositeFieldContainer[Plugin]
    def __init__(self, analyzers: _Optional[_Iterable[_Union[Analyzer, _Mapping]]] = ..., plugins: _Optional[_Iterable[_Union[Plugin, _Mapping]]] = ...) -> None: ...

class GetAnalyzerRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class GetAnalyzerResponse(_message.Message):
    __slots__ = ("analyzer",)
    ANALYZER_FIELD_NUMBER: _ClassVar[int]
    analyzer: Analyzer
    def __init__(self, analyzer: _Optional[_Union[Analyzer, _Mapping]] = ...) -> None: ...

class Analyzer(_message.Message):
    __slots__ = ("name", "qualified_name", "distribution", "version", "summary", "description", "params_schema", "results", "examples", "requirements", "compatibility")
    NAME_FIELD_NUMBER: _ClassVar[int]
    QUALIFIED_NAME_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    PARAMS_SCHEMA_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    REQUIREMENTS_FIELD_NUMBER: _ClassVar[int]
    COMPATIBILITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    qualified_name: str
    distribution: str
    version: str
    summary: str
    description: str
    params_schema: _struct_pb2.Struct
    results: _containers.RepeatedCompositeFieldContainer[ResultDeclaration]
    examples: _containers.RepeatedCompositeFieldContainer[Example]
    requirements: Requirements
    compatibility: _containers.RepeatedCompositeFieldContainer[Compatibility]
    def __init__(self, name: _Optional[str] = ..., qualified_name: _Optional[str] = ..., distribution: _Optional[str] = ..., version: _Optional[str] = ..., summary: _Optional[str] = ..., description: _Optional[str] = ..., params_schema: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., results: _Optional[_Iterable[_Union[ResultDeclaration, _Mapping]]] = ..., examples: _Optional[_Iterable[_Union[Example, _Mapping]]] = ..., requirements: _Optional[_Union[Requirements, _Mapping]] = ..., compatibility: _Optional[_Iterable[_Union[Compatibility, _Mapping]]] = ...) -> None: ...

class ResultDeclaration(_message.Message):
    __slots__ = ("name", "kind", "description")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: str
    description: str
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class Example(_message.Message):
    __slots__ = ("name", "shows", "params", "after")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SHOWS_FIELD_NUMBER: _ClassVar[int]
    PARAMS_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    name: str
    shows: str
    params: _struct_pb2.Struct
    after: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., shows: _Optional[str] = ..., params: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., after: _Optional[_Iterable[str]] = ...) -> None: ...

class Requirements(_message.Message):
    __slots__ = ("model", "features")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    model: bool
    features: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[bool] = ..., features: _Optional[_Iterable[str]] = ...) -> None: ...

class Compatibility(_message.Message):
    __slots__ = ("model", "satisfied", "reasons")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SATISFIED_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    model: str
    satisfied: bool
    reasons: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., satisfied: _Optional[bool] = ..., reasons: _Optional[_Iterable[str]] = ...) -> None: ...

class ReleasePluginRequest(_message.Message):
    __slots__ = ("distribution",)
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    distribution: str
    def __init__(self, distribution: _Optional[str] = ...) -> None: ...

class ReleasePluginResponse(_message.Message):
    __slots__ = ("released",)
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    released: bool
    def __init__(self, released: _Optional[bool] = ...) -> None: ...

class Plugin(_message.Message):
    __slots__ = ("name", "distribution", "version", "status", "problem", "analyzers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    ANALYZERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    distribution: str
    version: str
    status: PluginStatus
    problem: str
    analyzers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., distribution: _Optional[str] = ..., version: _Optional[str] = ..., status: _Optional[_Union[PluginStatus, str]] = ..., problem: _Optional[str] = ..., analyzers: _Optional[_Iterable[str]] = ...) -> None: ...
