"""The life of the daemon: listen, load, say that it is ready, serve, drain, stop.

Invariant: from the first signal on nothing new is let in, and nothing half-sent looks complete.
"""

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

import grpc.aio
import structlog

from lensd_api.errors import LensdError
from lensd_server.access.access import Access
from lensd_server.addresses import is_loopback, socket_path
from lensd_server.engine.events import ModelState
from lensd_server.engine.models.sources import is_installed
from lensd_server.engine.wakeup import post
from lensd_server.plugins import AnalyzerRegistry
from lensd_server.reload import Change, change
from lensd_server.rpc.analysis import AnalysisServicer, TracesRequests
from lensd_server.rpc.analyzers import AnalyzerServicer
from lensd_server.rpc.artifact_service import ArtifactServicer
from lensd_server.rpc.gate import Gate
from lensd_server.rpc.health import Health
from lensd_server.rpc.listeners import AddressInUse, Servicers, build_server, listen
from lensd_server.rpc.model_service import ModelServicer
from lensd_server.rpc.ports import Analyses, Artifacts, Models
from lensd_server.rpc.readers import Readers
from lensd_server.rpc.scope import Listener
from lensd_server.rpc.server_service import ServerFacts, ServerServicer
from lensd_server.settings import EMBEDDED_SOURCE, LimitSettings, Settings, SettingsError
from lensd_server.systemd import Supervisor
from lensd_server.telemetry.http import MetricsServer, Pulse
from lensd_server.telemetry.interceptor import MetricsInterceptor
from lensd_server.telemetry.logging import set_log_level
from lensd_server.telemetry.metrics import Metrics

#: How long load balancers get to notice, where there may be any.
DRAIN_NOTICE_S = 5.0
#: How long cancelled analyses get to tell their callers.
_FAREWELL_S = 2.0
#: Once nothing runs, requests are refused until none has come for so long, and at most for so long: what
#: reaches gRPC while it stops is cancelled without a word.
_QUIET_S, _LAST_REFUSALS_S = 0.03, 0.5
_PULSE_S = 0.25

_log = structlog.get_logger("lensd.daemon")


class StartFailed(Exception):
    """The daemon cannot start; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Engine:
    """What the daemon serves. ``close`` frees it once nothing runs any more."""

    models: Models
    analyses: Analyses
    artifacts: Artifacts
    registry: AnalyzerRegistry
    metrics: Metrics
    devices: Sequence[str]
    close: Callable[[], None]
    #: Called once, with what to do when an analyzer holds the others up for good.
    when_held: Callable[[Callable[[str], None]], None] = lambda _: None
    #: Called with the limits in force after a reload.
    limit: Callable[[LimitSettings], None] = lambda _: None
    access: Access = field(default_factory=Access)
    #: Where requests are traced, if they are.
    tracing: TracesRequests | None = None


class Daemon:
    """One daemon in one event loop. Runs once.

    ``reread`` gives the configuration as it is now and raises SettingsError; without it SIGHUP is ignored.
    """

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        announce: Callable[[str], None],
        reread: Callable[[], Settings] | None = None,
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._announce = announce
        self._reread = reread
        self._supervisor = Supervisor()
        #: Set, for any thread to see, when nothing is left but to end.
        self.closing = threading.Event()
        self._gate = Gate()
        self._health = Health()
        self._pulse = Pulse()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._asked_to_reload = asyncio.Event()
        #: Why it had to stop by itself; empty otherwise.
        self.defeat = ""
        self._servers: list[grpc.aio.Server] = []
        self._metrics_server: MetricsServer | None = None
        self._servicers: Servicers | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def stop(self) -> None:
        """Asks it to stop; asked again, to do so at once."""
        if self._stop.is_set():
            self._hurry.set()
        self._stop.set()

    def reload(self) -> None:
        """Asks it to read its configuration again."""
        self._asked_to_reload.set()

    def _give_up(self, why: str) -> None:
        """Drains because only a new process can help. On the daemon's loop."""
        if not self._stop.is_set():
            self.defeat = why
            _log.error("draining, to be started anew", reason=why)
            self.stop()

    async def run(self) -> None:
        """Serves until asked to stop, or until ``defeat`` says why it cannot go on. Raises StartFailed."""
        loop = asyncio.get_running_loop()
        self._engine.when_held(lambda why: post(loop, self._give_up, why))
        with self._signals():
            try:
                grpc_at, admin_at, metrics_at = await self._listen()
                self._tasks = [self._keep_doing(work) for work in self._background()]
                loaded = await self._unless_stopped(self._preload())
                if loaded is not None:
                    await self._health.ready()
                    self._pulse.phase = "serving"
                    self._announce(
                        f"lensd ready grpc={grpc_at} metrics={metrics_at} admin={admin_at} models={','.join(loaded)}"
                    )
                    self._supervisor.ready(f"serving {', '.join(loaded) or 'no preloaded model'}")
                    await self._stop.wait()
                    await self._drain()
            finally:
                await self._close()

    async def _listen(self) -> tuple[str, str, str]:
        server, metrics = self._settings.server, self._engine.metrics
        try:
            self._metrics_server = MetricsServer(server.metrics_listen, metrics.registry, self._pulse)
        except OSError as error:
            raise StartFailed(
                f"cannot listen on {server.metrics_listen} (setting server.metrics_listen): "
                f"{error.strerror or error}; choose another address, or port 0 for a free one"
            ) from error
        self._metrics_server.start()
        await self._health.starting()
        servicers = self._make_servicers()
        readers = Readers(self._settings.limits, metrics)
        tracing = self._engine.tracing
        traces = [] if tracing is None else [tracing.interceptor()]
        addresses: list[str] = []
        for listener, address, setting in (
            (Listener.PUBLIC, server.listen, "server.listen"),
            (Listener.ADMIN, server.admin_listen, "server.admin_listen"),
        ):
            built = build_server(
                listener,
                servicers,
                self._health.servicer,
                max_request_bytes=self._settings.limits.max_request_bytes,
                access=self._engine.access,
                on_socket=socket_path(address) is not None,
                readers=readers,
                interceptors=[MetricsInterceptor(metrics), *traces],
            )
            try:
                addresses.append(listen(built, address, setting, self._engine.access.certificates))
            except AddressInUse as error:
                raise StartFailed(str(error)) from error
            self._servers.append(built)
        for built in self._servers:
            await built.start()
        return addresses[0], addresses[1], self._metrics_server.address

    def _make_servicers(self) -> Servicers:
        engine, limits = self._engine, self._settings.limits
        facts = ServerFacts(start_time=time.time(), devices=engine.devices)
        self._servicers = Servicers(
            analysis=AnalysisServicer(
                engine.analyses, limits, self._gate, engine.metrics, engine.access.quotas, engine.tracing
            ),
            analyzers=AnalyzerServicer(engine.registry, engine.models),
            models=ModelServicer(engine.models, self._gate),
            artifacts=ArtifactServicer(engine.artifacts),
            server=ServerServicer(
                facts, limits, engine.access.quotas, engine.models, engine.analyses, self._gate
            ),
        )
        return self._servicers

    def _background(self) -> list[Coroutine[Any, Any, None]]:
        return [self._beat(), self._follow_models(), self._reload_when_asked()]

    def _keep_doing(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """``work`` in the background. A daemon whose health or pulse nobody keeps is no daemon: it drains."""

        def ended(task: asyncio.Task[None]) -> None:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                _log.error("a task that has to go on failed", task=work.__name__, exc_info=error)
                self._give_up(f"its task {work.__name__.strip('_')} failed")

        task = asyncio.create_task(work)
        task.add_done_callback(ended)
        return task

    async def _reload_when_asked(self) -> None:
        while self._reread is not None:
            await self._asked_to_reload.wait()
            self._asked_to_reload.clear()
            self._supervisor.reloading()
            outcome = await self._reload(self._reread)
            self._engine.metrics.config_reloads.labels(outcome).inc()
            if self._pulse.phase == "serving":
                self._supervisor.ready(f"configuration {outcome}")

    async def _reload(self, reread: Callable[[], Settings]) -> str:
        """Takes over what it can of a changed configuration; one that is wrong changes nothing."""
        audit = self._engine.access.audit
        try:
            found = self._take_over(await asyncio.to_thread(reread))
        except SettingsError as error:
            audit.reload_refused(str(error))
            return "refused"
        except Exception as error:  # of a parser, whatever it is: the next SIGHUP has to be answered
            _log.exception("the new configuration could not be read")
            audit.reload_refused(f"{type(error).__name__}, see the log")
            return "refused"
        audit.reloaded(applied=found.applied, needs_restart=found.restart)
        return "ok"

    def _take_over(self, new: Settings) -> Change:
        found = change(self._settings, new)
        self._settings = found.settings
        set_log_level(found.settings.server.log_level)
        self._engine.access.take_over(found.settings)
        limits = found.settings.limits
        self._engine.limit(limits)
        if self._servicers is not None:
            self._servicers.analysis.limits = self._servicers.server.limits = limits
        return found

    async def _beat(self) -> None:
        """Shows on the metrics port that the loop turns, and how late."""
        lag, tasks = self._engine.metrics.event_loop_lag, self._engine.metrics.event_loop_tasks
        while True:
            due = time.monotonic() + _PULSE_S
            await asyncio.sleep(_PULSE_S)
            lag.observe(max(0.0, time.monotonic() - due))
            tasks.set(len(asyncio.all_tasks()))
            self._pulse.beat()
            self._supervisor.alive()

    async def _follow_models(self) -> None:
        """Keeps health as the models' states are.

        One that is preloaded and cannot be loaded any more takes the readiness along: a cold one would be
        loaded when it is asked for.
        """
        failed: set[str] = set()
        async with aclosing(cast("AsyncGenerator[Any]", self._engine.models.watch())) as statuses:
            async for status in statuses:
                await self._health.model(status)
                if status.state is ModelState.FAILED and self._settings.models[status.name].preload:
                    failed.add(status.name)
                elif status.state is not ModelState.LOADING:  # another try may fail as well
                    failed.discard(status.name)
                if tuple(sorted(failed)) != self._pulse.failed:
                    self._pulse.failed = tuple(sorted(failed))
                    if self._pulse.phase == "serving":
                        await self._health.overall(not failed)

    async def _preload(self) -> list[str]:
        names = [name for name, model in self._settings.models.items() if model.preload]
        for name in names:
            _log.info("loading model", model=name, source=self._settings.models[name].source)
            try:
                async with aclosing(cast("AsyncGenerator[Any]", self._engine.models.load(name))) as steps:
                    async for step in steps:
                        _log.debug("loading model", model=name, stage=step.stage, fraction=step.fraction)
            except LensdError as error:
                mend = ""
                if self._settings.models[name].source == EMBEDDED_SOURCE and not is_installed(
                    EMBEDDED_SOURCE
                ):
                    mend = "; `lensd doctor --fix` installs what the embedded model needs"
                raise StartFailed(f"model {name} could not be loaded: {error.message}{mend}") from error
            status = self._engine.models.status(name)
            if status.state is not ModelState.RESIDENT:
                raise StartFailed(f"model {name} could not be loaded: {status.problem or status.state}")
            await self._health.model(status)
        return names

    async def _unless_stopped(self, work: Coroutine[Any, Any, list[str]]) -> list[str] | None:
        """What ``work`` returns, or ``None`` when the daemon is asked to stop first."""
        working = asyncio.create_task(work)
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
            return working.result() if working.done() else None
        finally:
            working.cancel()
            stopping.cancel()
            await asyncio.gather(working, stopping, return_exceptions=True)

    async def _drain(self) -> None:
        server = self._settings.server
        _log.info("draining", analyses=self._gate.inside, grace_s=server.grace_s)
        self._pulse.phase = "draining"
        self._supervisor.stopping(self.defeat or "draining")
        self._engine.metrics.draining.set(1)
        await self._health.draining()
        if not is_loopback(server.listen):
            await self._unless_hurried(asyncio.Event().wait(), DRAIN_NOTICE_S)
        self._gate.close()
        await self._unless_hurried(self._gate.empty(), server.grace_s)
        if not self._gate.is_empty:
            _log.warning("cancelling what did not finish in time", analyses=self._gate.inside)
            self._gate.cut = True
            for running in self._engine.analyses.running():
                self._engine.analyses.cancel(running.request_id)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await self._gate.empty()

    async def _unless_hurried(self, work: Coroutine[Any, Any, Any], timeout_s: float) -> None:
        working = asyncio.create_task(work)
        hurrying = asyncio.create_task(self._hurry.wait())
        try:
            await asyncio.wait((working, hurrying), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            working.cancel()
            hurrying.cancel()
            await asyncio.gather(working, hurrying, return_exceptions=True)

    async def _close(self) -> None:
        self.closing.set()
        self._gate.close()
        if self._servers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LAST_REFUSALS_S):
                    await self._gate.quiet(_QUIET_S)
        # What is left are watches and probes, which would never end by themselves.
        await asyncio.gather(*(server.stop(grace=0.2) for server in self._servers))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._engine.close)
        if self._metrics_server is not None:
            await asyncio.to_thread(self._metrics_server.stop)

    @contextlib.contextmanager
    def _signals(self) -> "Any":
        loop = asyncio.get_running_loop()
        actions = {signal.SIGTERM: self.stop, signal.SIGINT: self.stop}
        if self._reread is not None:
            actions[signal.SIGHUP] = self.reload
        for number, action in actions.items():
            loop.add_signal_handler(number, action)
        try:
            yield
        finally:
            for number in actions:
                loop.remove_signal_handler(number)
