"""What a server says about itself: models, analyzers, artifacts, limits and load."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from lensd_client.events import ModelState

PluginStatus = Literal["", "active", "broken", "disabled", "quarantined"]
HealthStatus = Literal["SERVING", "NOT_SERVING", "UNKNOWN", "SERVICE_UNKNOWN"]


@dataclass(frozen=True, slots=True)
class Replica:
    """One copy of a model. ``device`` is empty while none is chosen; ``problem`` says why it failed or had no
    room, ``detail`` what it waits for."""

    state: ModelState
    device: str
    leases: int
    problem: str
    detail: str


@dataclass(frozen=True, slots=True)
class Model:
    """A configured model. Sizes are 0 and texts empty until it is resident.

    ``revision`` is the SHA-256 that identifies weights, configuration and tokenizer;
    ``anatomy`` is only there when one model was asked for. ``reserved_bytes`` are set aside for it
    while it loads and is resident, ``waiting`` counts the analyses that wait for it, and ``detail``
    says what a model that loads or drains waits for. ``replicas`` are as many as are configured; the
    model's state is that of the best of them, bytes and leases are those of all.
    """

    name: str
    source: str
    state: ModelState
    revision: str
    architecture: str
    device: str
    dtype: str
    resident_bytes: int
    parameters: int
    context_length: int
    leases: int
    pinned: bool
    problem: str
    anatomy: Mapping[str, Any]
    reserved_bytes: int = 0
    waiting: int = 0
    detail: str = ""
    replicas: tuple[Replica, ...] = ()


@dataclass(frozen=True, slots=True)
class LoadStep:
    """How far a load has come: ``fraction`` from 0 to 1; ``detail`` says what it waits for."""

    model: Model
    stage: str
    fraction: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class ResultDeclaration:
    """A result that an analyzer declares; ``kind`` is table, tensor, graph, record or text."""

    name: str
    kind: str
    description: str


@dataclass(frozen=True, slots=True)
class Example:
    """Parameters that run as they are; ``after`` names examples that must have run before."""

    name: str
    shows: str
    params: Mapping[str, Any]
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compatibility:
    """Whether a resident model can serve an analyzer, and why not."""

    model: str
    satisfied: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Analyzer:
    """An analyzer. ``params_schema``, ``results``, ``examples`` and ``compatibility`` are only
    there when one analyzer was asked for.

    ``params_schema`` is a JSON Schema; ``needs_model`` says whether it can run without a
    model, ``features`` what the model's anatomy must offer.
    """

    name: str
    qualified_name: str
    distribution: str
    version: str
    summary: str
    description: str
    params_schema: Mapping[str, Any]
    results: tuple[ResultDeclaration, ...]
    examples: tuple[Example, ...]
    needs_model: bool
    features: tuple[str, ...]
    compatibility: tuple[Compatibility, ...]


@dataclass(frozen=True, slots=True)
class Plugin:
    """An installed plugin; ``problem`` says why it does not work."""

    name: str
    distribution: str
    version: str
    status: PluginStatus
    problem: str
    analyzers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A stored artifact; ``metadata`` is only there when one artifact was asked for."""

    name: str
    version: int
    analyzer: str
    analyzer_version: str
    model: str
    model_revision: str
    sha256: str
    size_bytes: int
    created: datetime
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Quota:
    """What one caller may use: analyses at once, rows, tokens and bytes a minute; None for no bound."""

    max_analyses: int | None
    rows_per_minute: int | None
    tokens_per_minute: int | None
    bytes_per_minute: int | None


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client must keep to; ``max_timeout_s`` is None when there is no limit.

    What is admitted are the analyses of one model, by their analyzers' estimates. One caller may have
    ``caller_share`` of analyses, queued rows, admitted tokens and bytes. A stream that is not read for
    ``send_timeout_s`` is broken off. ``quota`` is that of whoever asked.
    """

    max_request_bytes: int
    max_response_bytes: int
    max_analyses: int
    max_analyses_per_stream: int
    max_queued_rows: int
    max_timeout_s: float | None
    max_admitted_tokens: int
    max_admitted_bytes: int
    caller_share: float
    max_streams_per_caller: int
    send_timeout_s: float
    max_artifact_bytes: int
    max_artifacts_bytes: int
    quota: Quota


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Versions, limits and features of a server."""

    version: str
    api_version: str
    libraries: Mapping[str, str]
    started: datetime
    limits: Limits
    features: tuple[str, ...]
    devices: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """What waits for one model: rows, tokens without padding, analyses that hold it."""

    model: str
    queued_rows: int
    queued_tokens: int
    leases: int


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a server is."""

    analyses: int
    draining: bool
    models: tuple[ModelLoad, ...]


@dataclass(frozen=True, slots=True)
class RunningAnalysis:
    """An analysis that runs now; ``peer`` is the address of its caller, ``identity`` its name, if any."""

    request_id: str
    analyzer: str
    model: str
    age_s: float
    pending_rows: int
    peer: str
    identity: str = ""
