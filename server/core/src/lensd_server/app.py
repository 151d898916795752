"""The composition root: the only module that wires settings, plugins, engine, RPC and telemetry."""

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from lensd_server import __version__
from lensd_server.access.access import Access
from lensd_server.access.certificates import CertificateError, Certificates
from lensd_server.access.tokens import TokenFileError
from lensd_server.addresses import socket_path
from lensd_server.crashing import CrashingAnalyzers, WritingAnalyzers
from lensd_server.daemon import Daemon, Engine, StartFailed
from lensd_server.engine.anatomy.hooks import count_hooks
from lensd_server.engine.artifact_remote import WrongStore
from lensd_server.engine.batching.turn import Turn
from lensd_server.engine.device import Devices
from lensd_server.engine.executor import LocalExecutor
from lensd_server.engine.models.loading import Loader
from lensd_server.engine.models.residency import Residency
from lensd_server.engine.models.slot import ResidentModel
from lensd_server.engine.models.sources import Sources
from lensd_server.engine.observers import Observers
from lensd_server.engine.storage import Storage
from lensd_server.folders import Unusable, claim
from lensd_server.plugins import discover
from lensd_server.settings import Settings
from lensd_server.stuck import StuckAnalyzers
from lensd_server.telemetry import definitions
from lensd_server.telemetry.collectors import (
    CertificateCollector,
    MemoryCollector,
    ModelCollector,
    PluginCollector,
    ResidentCollector,
)
from lensd_server.telemetry.foreign import ForeignCollector
from lensd_server.telemetry.logging import AnalysisLog, configure_logging, keep_audit
from lensd_server.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from lensd_server.telemetry.tracing import Tracing

#: How long threads get to end once nothing is served, and how long where one is known not to.
END_S, HELD_END_S = 20.0, 2.0


def serve(settings: Settings, reread: Callable[[], Settings] | None = None) -> int:
    """Runs the daemon until it is told to stop; answers the exit status.

    1 when it could not start, or had to stop by itself: a supervisor should start it anew. ``reread``
    gives the configuration as it is at a SIGHUP.
    """
    configure_logging(log_format=settings.server.log_format, level=settings.server.log_level)
    try:
        with _claimed(settings):
            daemon = Daemon(settings, assemble(settings), _announce, reread)
            threading.Thread(target=_end_in_time, args=(daemon,), name="lensd-end", daemon=True).start()
            asyncio.run(daemon.run())
    except StartFailed as failure:
        print(f"lensd: {failure}", file=sys.stderr)
        return 1
    structlog.get_logger("lensd").info("stopped")
    if daemon.defeat:
        _end_defeated(daemon)
    return 0


def _end_defeated(daemon: Daemon) -> None:
    """Ends the process at once: on a broken device, what an interpreter frees at its end would abort it."""
    try:
        _admit_defeat(daemon)
        logging.shutdown()
        sys.stdout.flush()
    finally:
        os._exit(1)


def _admit_defeat(daemon: Daemon) -> None:
    if daemon.defeat:
        print(f"lensd: stopped because {daemon.defeat}; start it anew", file=sys.stderr, flush=True)


def _keep_audit(path: Path | None, metrics: Metrics) -> None:
    if path is None:
        return
    try:
        keep_audit(path, metrics.audit_lost.inc)
    except OSError as error:
        raise StartFailed(f"auth.audit_file: {path}: {error.strerror}") from error


@contextmanager
def _claimed(settings: Settings) -> Iterator[None]:
    """The daemon's folders are its own. Raises StartFailed without a state folder."""
    server = settings.server
    with ExitStack() as folders:
        try:
            folders.enter_context(claim(server.state_dir, "server.state_dir"))
        except Unusable as error:
            raise StartFailed(str(error)) from error
        try:
            folders.enter_context(claim(server.cache_dir, "server.cache_dir"))
        except Unusable as error:  # models that need no conversion are served without it
            structlog.get_logger("lensd").warning("nothing can be cached", problem=str(error))
        yield


def _end_in_time(daemon: Daemon) -> None:
    """Ends the process some time after the daemon's end began, whatever still holds a thread of it."""
    daemon.closing.wait()
    patience_s = HELD_END_S if daemon.defeat else END_S
    time.sleep(patience_s)
    structlog.get_logger("lensd").error("a thread does not end; ending the process", seconds=patience_s)
    try:
        _admit_defeat(daemon)
    finally:
        os._exit(1)


def assemble(settings: Settings) -> Engine:
    """Everything that serves, wired together; nothing is loaded yet."""
    registry = discover(settings.plugins.allow)
    try:
        access = Access.of(settings)
    except (TokenFileError, CertificateError) as error:
        raise StartFailed(str(error)) from error
    metrics = Metrics()
    metrics.expect(settings.models)
    _keep_audit(settings.auth.audit_file, metrics)
    tracing = _tracing(settings)
    traced = () if tracing is None else (tracing,)
    # Metrics first: a plugin's hook must not delay them.
    observers = Observers(
        analyses=(
            metrics,
            access.quotas,
            CrashingAnalyzers(registry, settings.plugins, callers_are_known=settings.auth.required),
            AnalysisLog(),
            registry,
        ),
        batches=(metrics, *traced),
        loads=(metrics,),
    )
    cpu_turn = Turn()
    devices = Devices(cpu_turn)
    sources = Sources(list(registry.model_sources().values()))
    stuck = StuckAnalyzers(registry)
    residency = Residency(
        settings.models,
        Loader(settings.server.cache_dir, sources=sources),
        settings.limits,
        devices=devices,
        observers=observers,
        when_lost=stuck.give_up,
        when_damaged=WritingAnalyzers(registry),
    )
    storage = _storage(settings)
    executor = LocalExecutor(
        registry,
        residency,
        settings.limits,
        observers,
        storage=storage,
        cpu_turn=cpu_turn,
        when_stuck=stuck,
    )
    metrics.registry.register(ModelCollector(residency.statuses))
    for definition, number, together in (
        (definitions.MODEL_HOOKS, _hooks, sum),
        (definitions.MODEL_KEPT, _kept_bytes, sum),
        (definitions.MODEL_BATCH_TOKENS, _batch_tokens, max),
    ):
        by_model = partial(_of_residents, residency, number, together)
        metrics.registry.register(ResidentCollector(definition, by_model))
    metrics.registry.register(MemoryCollector(residency.memory))
    metrics.registry.register(PluginCollector(registry))
    metrics.registry.register(CertificateCollector(_listeners_with_tls(settings, access)))
    metrics.registry.register(ForeignCollector(registry.metrics_collectors(), registry.count_error))

    def close() -> None:
        executor.close()
        residency.close()
        if tracing is not None:
            tracing.close()

    return Engine(
        residency,
        executor,
        storage.artifacts,
        registry,
        metrics,
        devices.names,
        close,
        stuck.when_held,
        executor.limit,
        access,
        tracing,
    )


def _tracing(settings: Settings) -> "Tracing | None":
    wanted = settings.tracing
    if wanted.endpoint is None:
        return None
    try:
        # Imported here: without tracing nobody pays for it.
        from lensd_server.telemetry.tracing import open_tracing

        return open_tracing(wanted.endpoint, wanted.sample_ratio, __version__)
    except ImportError as error:
        raise StartFailed(
            "tracing.endpoint is set, but OpenTelemetry is not installed: pip install 'lensd-server[tracing]'"
        ) from error


def _storage(settings: Settings) -> Storage:
    try:
        return Storage.under(settings.server.state_dir, settings.limits, settings.server.artifact_store)
    except WrongStore as error:
        raise StartFailed(f"{error} (setting server.artifact_store)") from error


def _of_residents(
    residency: Residency,
    number: Callable[[ResidentModel], int],
    together: Callable[[Iterable[int]], int],
) -> dict[str, int]:
    """``number`` of each model that is resident, that of its replicas put ``together``."""
    found = {name: residency.residents(name) for name in residency.names}
    return {name: together(map(number, replicas)) for name, replicas in found.items() if replicas}


def _hooks(resident: ResidentModel) -> int:
    return count_hooks(resident.loaded.model.module)


def _kept_bytes(resident: ResidentModel) -> int:
    return resident.batcher.kept_bytes + resident.loaded.model.view.cached_bytes


def _batch_tokens(resident: ResidentModel) -> int:
    return resident.batcher.max_tokens


def _listeners_with_tls(settings: Settings, access: Access) -> dict[str, Certificates]:
    if access.certificates is None:
        return {}
    addresses = {"public": settings.server.listen, "admin": settings.server.admin_listen}
    return {name: access.certificates for name, at in addresses.items() if socket_path(at) is None}


def _announce(line: str) -> None:
    print(line, flush=True)
