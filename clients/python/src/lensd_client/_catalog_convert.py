"""Messages of the catalogue services, turned into :mod:`lensd_client.catalog`'s values. Pure."""

from datetime import UTC, datetime
from typing import Any, cast

from lensd_client import catalog
from lensd_client._convert import model_state
from lensd_client._structs import from_struct
from lensd_proto.v1 import analyzers_pb2, artifacts_pb2, models_pb2, server_pb2


def model(message: models_pb2.Model) -> catalog.Model:
    """A configured model."""
    return catalog.Model(
        name=message.name,
        source=message.source,
        state=model_state(message.state),
        revision=message.revision,
        architecture=message.architecture,
        device=message.device,
        dtype=message.dtype,
        resident_bytes=message.resident_bytes,
        parameters=message.parameters,
        context_length=message.context_length,
        leases=message.leases,
        pinned=message.pinned,
        problem=message.problem,
        anatomy=from_struct(message.anatomy),
        reserved_bytes=message.reserved_bytes,
        waiting=message.waiting,
        detail=message.detail,
        replicas=tuple(
            catalog.Replica(model_state(r.state), r.device, r.leases, r.problem, r.detail)
            for r in message.replicas
        ),
    )


def load_step(message: models_pb2.LoadModelResponse) -> catalog.LoadStep:
    """How far a load has come."""
    return catalog.LoadStep(model(message.model), message.stage, message.fraction, message.detail)


def analyzer(message: analyzers_pb2.Analyzer) -> catalog.Analyzer:
    """An analyzer."""
    return catalog.Analyzer(
        name=message.name,
        qualified_name=message.qualified_name,
        distribution=message.distribution,
        version=message.version,
        summary=message.summary,
        description=message.description,
        params_schema=from_struct(message.params_schema),
        results=tuple(catalog.ResultDeclaration(r.name, r.kind, r.description) for r in message.results),
        examples=tuple(
            catalog.Example(e.name, e.shows, from_struct(e.params), tuple(e.after)) for e in message.examples
        ),
        needs_model=message.requirements.model,
        features=tuple(message.requirements.features),
        compatibility=tuple(
            catalog.Compatibility(c.model, c.satisfied, tuple(c.reasons)) for c in message.compatibility
        ),
    )


def plugin(message: analyzers_pb2.Plugin) -> catalog.Plugin:
    """An installed plugin."""
    known = message.status in analyzers_pb2.PluginStatus.values()
    name = analyzers_pb2.PluginStatus.Name(message.status) if known else ""
    status = name.removeprefix("PLUGIN_STATUS_").lower()
    return catalog.Plugin(
        name=message.name,
        distribution=message.distribution,
        version=message.version,
        status=cast("catalog.PluginStatus", "" if status == "unspecified" else status),
        problem=message.problem,
        analyzers=tuple(message.analyzers),
    )


def artifact(message: artifacts_pb2.Artifact) -> catalog.Artifact:
    """A stored artifact."""
    return catalog.Artifact(
        name=message.name,
        version=message.version,
        analyzer=message.analyzer,
        analyzer_version=message.analyzer_version,
        model=message.model,
        model_revision=message.model_revision,
        sha256=message.sha256,
        size_bytes=message.bytes,
        created=_moment(message.create_time),
        metadata=from_struct(message.metadata),
    )


def server_info(message: server_pb2.GetServerInfoResponse) -> catalog.ServerInfo:
    """Versions, limits and features."""
    return catalog.ServerInfo(
        version=message.version,
        api_version=message.api_version,
        libraries=dict(message.libraries),
        started=_moment(message.start_time),
        limits=_limits(message.limits),
        features=tuple(message.features),
        devices=tuple(message.devices),
    )


def load(message: server_pb2.GetLoadResponse) -> catalog.Load:
    """How busy the server is."""
    models = tuple(
        catalog.ModelLoad(m.model, m.queued_rows, m.queued_tokens, m.leases) for m in message.models
    )
    return catalog.Load(message.analyses, message.draining, models)


def running(message: server_pb2.RunningAnalysis) -> catalog.RunningAnalysis:
    """An analysis that runs now."""
    return catalog.RunningAnalysis(
        request_id=message.request_id,
        analyzer=message.analyzer,
        model=message.model,
        age_s=_seconds(message.age),
        pending_rows=message.pending_rows,
        peer=message.peer,
        identity=message.identity,
    )


def _limits(message: server_pb2.Limits) -> catalog.Limits:
    return catalog.Limits(
        max_request_bytes=message.max_request_bytes,
        max_response_bytes=message.max_response_bytes,
        max_analyses=message.max_analyses,
        max_analyses_per_stream=message.max_analyses_per_stream,
        max_queued_rows=message.max_queued_rows,
        max_timeout_s=_seconds(message.max_timeout) if message.HasField("max_timeout") else None,
        max_admitted_tokens=message.max_admitted_tokens,
        max_admitted_bytes=message.max_admitted_bytes,
        caller_share=message.caller_share,
        max_streams_per_caller=message.max_streams_per_caller,
        send_timeout_s=_seconds(message.send_timeout),
        max_artifact_bytes=message.max_artifact_bytes,
        max_artifacts_bytes=message.max_artifacts_bytes,
        quota=_quota(message.quota),
    )


def _quota(message: server_pb2.Quota) -> catalog.Quota:
    return catalog.Quota(
        max_analyses=message.max_analyses if message.HasField("max_analyses") else None,
        rows_per_minute=message.rows_per_minute if message.HasField("rows_per_minute") else None,
        tokens_per_minute=message.tokens_per_minute if message.HasField("tokens_per_minute") else None,
        bytes_per_minute=message.bytes_per_minute if message.HasField("bytes_per_minute") else None,
    )


def _seconds(duration: Any) -> float:
    return duration.seconds + duration.nanos / 1e9


def _moment(timestamp: Any) -> datetime:
    return datetime.fromtimestamp(timestamp.seconds + timestamp.nanos / 1e9, UTC)
