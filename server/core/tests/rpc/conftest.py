"""A real gRPC server on loopback over a scripted engine."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from lensd_api.artifacts import ArtifactInfo
from lensd_api.errors import LensdError, UnknownArtifact, UnknownModel
from lensd_api.results import Result
from lensd_proto.v1 import (
    analysis_pb2_grpc,
    analyzers_pb2_grpc,
    artifacts_pb2_grpc,
    models_pb2_grpc,
    server_pb2_grpc,
)
from lensd_server.access.access import Access
from lensd_server.daemon import Daemon
from lensd_server.engine.events import (
    Accepted,
    AnalysisEvent,
    AnalysisRequest,
    Completed,
    Found,
    LoadStep,
    ModelState,
    ModelStatus,
    Usage,
)
from lensd_server.engine.soundness import ResultCheck
from lensd_server.plugins import AnalyzerRegistry
from lensd_server.rpc.analysis import AnalysisServicer
from lensd_server.rpc.analyzers import AnalyzerServicer
from lensd_server.rpc.artifact_service import ArtifactServicer
from lensd_server.rpc.gate import Gate
from lensd_server.rpc.health import Health
from lensd_server.rpc.listeners import Servicers, build_server, listen
from lensd_server.rpc.model_service import ModelServicer
from lensd_server.rpc.readers import Readers
from lensd_server.rpc.scope import Listener
from lensd_server.rpc.server_service import ServerFacts, ServerServicer
from lensd_server.settings import LimitSettings, Settings
from lensd_server.telemetry.interceptor import MetricsInterceptor
from lensd_server.telemetry.metrics import Metrics
from server.core.tests.rpc.running import READY, Parts, Run, settings

Script = Callable[[AnalysisRequest], AsyncIterator[AnalysisEvent]]


@dataclass(frozen=True)
class FakeRunning:
    request_id: str
    analyzer: str
    model: str = ""
    age_s: float = 1.5
    pending_rows: int = 3
    peer: str = "ipv4:127.0.0.1:1"
    identity: str = ""


@dataclass
class ScriptedExecutor:
    """Runs what a test wrote under the analyzer's name, and remembers what became of it."""

    scripts: dict[str, Script] = field(default_factory=dict)
    requests: list[AnalysisRequest] = field(default_factory=list)
    live: dict[str, asyncio.Event] = field(default_factory=dict)
    ended: dict[str, asyncio.Event] = field(default_factory=dict)

    async def run(self, request: AnalysisRequest) -> AsyncGenerator[AnalysisEvent]:
        self.requests.append(request)
        ended = self.ended.setdefault(request.request_id, asyncio.Event())
        try:
            yield Accepted(request.analyzer, "1.0", "dist", request.model, ModelState.RESIDENT, "rev", 0)
            check = ResultCheck(request.analyzer, message_bytes=2**20, part_bytes=2**19)
            async for event in self.scripts[request.analyzer](request):
                yield check.found(event.result) if isinstance(event, Found) else event
            yield Completed("rev", Usage(total_s=0.5, rows=2))
        finally:
            ended.set()

    def yields(self, name: str, *results: Result) -> None:
        """Makes ``name`` an analyzer that yields ``results``."""

        async def script(request: AnalysisRequest) -> AsyncIterator[AnalysisEvent]:
            for result in results:
                yield Found(result)

        self.scripts[name] = script

    def raises(self, name: str, error: BaseException) -> None:
        """Makes ``name`` an analyzer that fails."""

        async def script(request: AnalysisRequest) -> AsyncIterator[AnalysisEvent]:
            raise error
            yield

        self.scripts[name] = script

    def waits(self, name: str) -> asyncio.Event:
        """Makes ``name`` an analyzer that waits for the event."""
        release = asyncio.Event()

        async def script(request: AnalysisRequest) -> AsyncIterator[AnalysisEvent]:
            await release.wait()
            return
            yield

        self.scripts[name] = script
        return release

    def running(self) -> Sequence[FakeRunning]:
        return [FakeRunning(r.request_id, r.analyzer) for r in self.requests]

    def cancel(self, request_id: str) -> bool:
        return any(r.request_id == request_id for r in self.requests)


@dataclass
class FakeModels:
    """Two configured models whose state a test may set."""

    states: dict[str, ModelStatus] = field(
        default_factory=lambda: {
            "tiny": ModelStatus(
                "tiny", "dir:/tiny", ModelState.RESIDENT, revision="abc", leases=1, queued_rows=4
            ),
            "other": ModelStatus("other", "hf:a/b", ModelState.COLD),
        }
    )
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def statuses(self) -> list[ModelStatus]:
        return [self.states[name] for name in sorted(self.states)]

    def status(self, name: str) -> ModelStatus:
        if name not in self.states:
            raise UnknownModel(f"no model {name!r}")
        return self.states[name]

    async def load(self, name: str) -> AsyncGenerator[LoadStep]:
        status = self.status(name)
        yield LoadStep(status, "read", 0.5)
        self.states[name] = ModelStatus(name, status.source, ModelState.RESIDENT)
        yield LoadStep(self.states[name], "ready", 1.0)

    async def unload(self, name: str) -> ModelStatus:
        self.states[name] = ModelStatus(name, self.status(name).source, ModelState.COLD)
        return self.states[name]

    async def watch(self) -> AsyncGenerator[ModelStatus]:
        while True:
            for status in self.statuses():
                yield status
            await self.changed.wait()
            self.changed.clear()


@dataclass
class FakeArtifacts:
    """A store with one artifact."""

    infos: list[ArtifactInfo] = field(
        default_factory=lambda: [
            ArtifactInfo("probe", 2, "fit", "1.0", "tiny", "abc", "0" * 64, 10, 1.5, {"accuracy": 0.5})
        ]
    )

    def list(self) -> Sequence[ArtifactInfo]:
        return self.infos

    def info(self, name: str) -> ArtifactInfo:
        for info in self.infos:
            if name in (info.name, f"{info.name}@{info.version}"):
                return info
        raise UnknownArtifact(f"no artifact {name!r}")

    def delete(self, name: str) -> None:
        self.infos.remove(self.info(name))


@dataclass
class Served:
    """The server and how to reach it."""

    executor: ScriptedExecutor
    models: FakeModels
    artifacts: FakeArtifacts
    registry: AnalyzerRegistry
    gate: Gate
    metrics: Metrics
    health: Health
    public: grpc.aio.Channel
    admin: grpc.aio.Channel
    #: Of the public listener.
    port: int = 0

    @property
    def analysis(self) -> Any:
        return analysis_pb2_grpc.AnalysisServiceStub(self.public)

    def stubs(self, channel: grpc.aio.Channel) -> Any:
        """Every service's stub over one channel."""

        class Stubs:
            analysis: Any = analysis_pb2_grpc.AnalysisServiceStub(channel)
            analyzers: Any = analyzers_pb2_grpc.AnalyzerServiceStub(channel)
            models: Any = models_pb2_grpc.ModelServiceStub(channel)
            artifacts: Any = artifacts_pb2_grpc.ArtifactServiceStub(channel)
            server: Any = server_pb2_grpc.ServerServiceStub(channel)

        return Stubs()


@pytest.fixture
def limits() -> LimitSettings:
    """Defaults; a test may override the fixture."""
    return LimitSettings(max_analyses_per_stream=3)


@pytest.fixture
def access() -> Access:
    """Anybody may do anything; a test may override the fixture."""
    return Access()


@pytest.fixture
async def served(limits: LimitSettings, access: Access) -> AsyncIterator[Served]:
    """Both listeners over scripted parts."""
    executor, models, artifacts = ScriptedExecutor(), FakeModels(), FakeArtifacts()
    registry, gate, metrics, health = AnalyzerRegistry(), Gate(), Metrics(), Health()
    servicers = Servicers(
        analysis=AnalysisServicer(executor, limits, gate, metrics, access.quotas),
        analyzers=AnalyzerServicer(registry, models),
        models=ModelServicer(models, gate),
        artifacts=ArtifactServicer(artifacts),
        server=ServerServicer(ServerFacts(1.0, ["cpu"]), limits, access.quotas, models, executor, gate),
    )
    readers = Readers(limits, metrics)
    servers: list[grpc.aio.Server] = []
    channels: list[grpc.aio.Channel] = []
    ports: list[int] = []
    for listener in (Listener.PUBLIC, Listener.ADMIN):
        server = build_server(
            listener,
            servicers,
            health.servicer,
            max_request_bytes=limits.max_request_bytes,
            access=access,
            readers=readers,
            interceptors=[MetricsInterceptor(metrics)],
        )
        address = listen(server, "127.0.0.1:0", "test")
        await server.start()
        servers.append(server)
        ports.append(int(address.rpartition(":")[2]))
        channels.append(
            grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", 128 * 1024 * 1024)])
        )
    yield Served(
        executor, models, artifacts, registry, gate, metrics, health, channels[0], channels[1], ports[0]
    )
    for channel in channels:
        await channel.close()
    for server in servers:
        await server.stop(None)


@dataclass(frozen=True)
class Refused:
    """What a failed call said."""

    code: grpc.StatusCode
    message: str
    status: status_pb2.Status
    reason: str
    metadata: dict[str, str]
    violations: dict[str, str]
    trailing: dict[str, Any]

    @classmethod
    def of(cls, error: grpc.aio.AioRpcError) -> "Refused":
        trailing = dict(error.trailing_metadata() or ())
        status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad)
        assert info.domain == "lensd"
        assert status.code == error.code().value[0]
        return cls(
            error.code(),
            error.details() or "",
            status,
            info.reason,
            dict(info.metadata),
            {v.field: v.description for v in bad.field_violations},
            trailing,
        )


@pytest.fixture
def refusal() -> Callable[[Any], Any]:
    """Awaits a call, or drains a stream, that must fail, and answers what it said."""

    async def refused(call: Any) -> Refused:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            if hasattr(call, "read"):
                async for _ in call:
                    pass
            else:
                await call
        return Refused.of(raised.value)

    return refused


@pytest.fixture
def lensd_error() -> type[LensdError]:
    """The base class, for tests that build errors of their own."""
    return LensdError


@pytest.fixture
def parts(served: Any) -> Parts:
    """What a daemon of a test serves."""
    return Parts(served.executor, served.models, served.artifacts)


@pytest.fixture
async def start(parts: Any) -> AsyncIterator[Callable[..., Any]]:
    """Starts a daemon and waits until it is ready."""
    runs: list[Run] = []

    async def begin(config: Settings | None = None, reread: Callable[[], Settings] | None = None) -> Run:
        ready: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        daemon = Daemon(config or settings(), parts.engine(), ready.set_result, reread)
        task = asyncio.create_task(daemon.run())
        await asyncio.wait((ready, task), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            ready.cancel()
            task.result()
        match = READY.match(ready.result())
        assert match, ready.result()
        runs.append(Run(daemon, task, *match.groups()))
        return runs[-1]

    yield begin
    for run in runs:
        run.daemon.stop()
        run.daemon.stop()
        await asyncio.wait_for(run.task, 20)
        for channel in run.channels:
            await channel.close()
