"""The composition root: the only module that wires settings, plugins, engine, RPC and telemetry."""

import asyncio
import sys

import structlog
import torch

from lensd_server.daemon import Daemon, Engine, StartFailed
from lensd_server.engine.batching.turn import Turn
from lensd_server.engine.executor import LocalExecutor
from lensd_server.engine.models.loading import Loader
from lensd_server.engine.models.residency import Residency
from lensd_server.engine.models.sources import Sources
from lensd_server.engine.observers import Observers
from lensd_server.engine.storage import Storage
from lensd_server.plugins import discover
from lensd_server.settings import Settings
from lensd_server.stuck import StuckAnalyzers
from lensd_server.telemetry.collectors import ModelCollector, PluginCollector
from lensd_server.telemetry.foreign import ForeignCollector
from lensd_server.telemetry.logging import AnalysisLog, configure_logging
from lensd_server.telemetry.metrics import Metrics


def serve(settings: Settings) -> int:
    """Runs the daemon until it is told to stop; answers the exit status.

    1 when it could not start, or had to stop by itself: a supervisor should start it anew.
    """
    configure_logging(log_format=settings.server.log_format, level=settings.server.log_level)
    try:
        daemon = Daemon(settings, assemble(settings), _announce)
        asyncio.run(daemon.run())
    except StartFailed as failure:
        print(f"lensd: {failure}", file=sys.stderr)
        return 1
    structlog.get_logger("lensd").info("stopped")
    if daemon.defeat:
        print(f"lensd: stopped because {daemon.defeat}; start it anew", file=sys.stderr)
        return 1
    return 0


def assemble(settings: Settings) -> Engine:
    """Everything that serves, wired together; nothing is loaded yet."""
    registry = discover(settings.plugins.allow)
    metrics = Metrics()
    # Metrics first: a plugin's hook must not delay them.
    observers = Observers(analyses=(metrics, AnalysisLog(), registry), batches=(metrics,), loads=(metrics,))
    cpu_turn = Turn()
    sources = Sources(list(registry.model_sources().values()))
    residency = Residency(
        settings.models,
        Loader(settings.server.cache_dir, sources=sources, cpu_turn=cpu_turn),
        settings.limits,
        observers=observers,
    )
    storage = Storage.under(settings.server.state_dir, settings.limits)
    stuck = StuckAnalyzers(registry)
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
    metrics.registry.register(PluginCollector(registry))
    metrics.registry.register(ForeignCollector(registry.metrics_collectors(), registry.count_error))

    def close() -> None:
        executor.close()
        residency.close()

    return Engine(
        residency, executor, storage.artifacts, registry, metrics, _devices(), close, stuck.when_held
    )


def _devices() -> list[str]:
    return ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]


def _announce(line: str) -> None:
    print(line, flush=True)
