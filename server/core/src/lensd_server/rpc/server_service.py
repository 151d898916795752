"""ServerService: what the server is, how busy it is, and what runs."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata

from google.protobuf.duration_pb2 import Duration

from lensd_api import __version__ as api_version
from lensd_api.errors import FieldViolation, InvalidRequest
from lensd_proto.v1 import server_pb2
from lensd_server import __version__
from lensd_server.access.quotas import Quotas
from lensd_server.engine.events import ModelState
from lensd_server.rpc import wire
from lensd_server.rpc.dispatch import Call
from lensd_server.rpc.gate import Gate
from lensd_server.rpc.ports import Analyses, Models
from lensd_server.settings import CallerQuota, LimitSettings

_LIBRARIES = ("torch", "transformers", "numpy", "grpcio")


@dataclass(frozen=True, slots=True)
class ServerFacts:
    """What does not change while the server runs. ``start_time`` is in Unix seconds."""

    start_time: float
    devices: Sequence[str]
    features: Sequence[str] = ("artifacts", "health", "reflection")


class ServerServicer:
    """Answers from the configuration, the residency and the executor."""

    def __init__(
        self,
        facts: ServerFacts,
        limits: LimitSettings,
        quotas: Quotas,
        models: Models,
        analyses: Analyses,
        gate: Gate,
    ) -> None:
        self._facts = facts
        self.limits = limits
        self._quotas = quotas
        self._models = models
        self._analyses = analyses
        self._gate = gate

    async def get_server_info(
        self, message: server_pb2.GetServerInfoRequest, call: Call
    ) -> server_pb2.GetServerInfoResponse:
        """Versions, limits and features."""
        response = server_pb2.GetServerInfoResponse(
            version=__version__,
            api_version=api_version,
            libraries=library_versions(),
            limits=_limits(self.limits, self._quotas.bounds(call.caller)),
            features=self._facts.features,
            devices=self._facts.devices,
        )
        response.start_time.FromNanoseconds(round(self._facts.start_time * 1e9))
        return response

    async def get_load(self, message: server_pb2.GetLoadRequest, call: Call) -> server_pb2.GetLoadResponse:
        """Analyses, queues and leases."""
        return server_pb2.GetLoadResponse(
            analyses=len(self._analyses.running()),
            draining=self._gate.draining,
            models=[
                server_pb2.ModelLoad(
                    model=status.name,
                    queued_rows=status.queued_rows,
                    queued_tokens=status.queued_tokens,
                    leases=status.leases,
                )
                for status in self._models.statuses()
                if status.state is ModelState.RESIDENT
            ],
        )

    async def list_analyses(
        self, message: server_pb2.ListAnalysesRequest, call: Call
    ) -> server_pb2.ListAnalysesResponse:
        """What runs, oldest first."""
        return server_pb2.ListAnalysesResponse(
            analyses=[
                server_pb2.RunningAnalysis(
                    request_id=running.request_id,
                    analyzer=running.analyzer,
                    model=running.model,
                    age=_duration(running.age_s),
                    pending_rows=running.pending_rows,
                    peer=running.peer,
                    identity=running.identity,
                )
                for running in self._analyses.running()
            ]
        )

    async def cancel_analysis(
        self, message: server_pb2.CancelAnalysisRequest, call: Call
    ) -> server_pb2.CancelAnalysisResponse:
        """Ends a running analysis."""
        if not wire.is_request_id(message.request_id):
            fault = FieldViolation("request_id", "must be at most 128 characters of [A-Za-z0-9._:-]")
            raise InvalidRequest(f"{fault.field}: {fault.description}", violations=[fault])
        return server_pb2.CancelAnalysisResponse(cancelled=self._analyses.cancel(message.request_id))


def library_versions() -> Mapping[str, str]:
    """Versions of what results depend on, without importing it."""
    versions = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def _limits(limits: LimitSettings, quota: CallerQuota) -> server_pb2.Limits:
    return server_pb2.Limits(
        max_request_bytes=limits.max_request_bytes,
        max_response_bytes=limits.max_response_bytes,
        max_analyses=limits.max_analyses,
        max_analyses_per_stream=limits.max_analyses_per_stream,
        max_queued_rows=limits.max_queued_rows,
        max_timeout=None if limits.max_timeout_s is None else _duration(limits.max_timeout_s),
        max_admitted_tokens=limits.max_admitted_tokens,
        max_admitted_bytes=limits.max_admitted_bytes,
        caller_share=limits.caller_share,
        max_streams_per_caller=limits.max_streams_per_caller,
        send_timeout=_duration(limits.send_timeout_s),
        max_artifact_bytes=limits.max_artifact_bytes,
        max_artifacts_bytes=limits.max_artifacts_bytes,
        quota=server_pb2.Quota(
            max_analyses=quota.max_analyses,
            rows_per_minute=quota.rows_per_minute,
            tokens_per_minute=quota.tokens_per_minute,
            bytes_per_minute=quota.bytes_per_minute,
        ),
    )


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(round(max(0.0, seconds) * 1e9))
    return duration
