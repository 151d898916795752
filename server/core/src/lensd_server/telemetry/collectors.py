"""Metrics that are read when they are scraped: models, plugins, and plugins' own."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lensd_server.engine.events import ModelState, ModelStatus
from lensd_server.plugins import AnalyzerRegistry
from lensd_server.telemetry import definitions

#: What the name of every metric of a plugin begins with.
PLUGIN_PREFIX = "lensd_plugin_"

_log = structlog.get_logger("lensd.metrics")


class ModelCollector(Collector):
    """State, size and leases of the configured models."""

    def __init__(self, statuses: Callable[[], Sequence[ModelStatus]]) -> None:
        self._statuses = statuses

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is is known at a scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """One family each, with every configured model in it."""
        state = definitions.MODEL_STATE.family()
        resident = definitions.MODEL_RESIDENT.family()
        leases = definitions.MODEL_LEASES.family()
        for status in self._statuses():
            for candidate in ModelState:
                state.add_metric((status.name, candidate.value), float(candidate is status.state))
            resident.add_metric((status.name,), status.resident_bytes)
            leases.add_metric((status.name,), status.leases)
        return (state, resident, leases)


class PluginCollector(Collector):
    """Installed plugins and how often their hooks failed."""

    def __init__(self, registry: AnalyzerRegistry) -> None:
        self._registry = registry

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is is known at a scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """One sample a plugin."""
        info, errors = definitions.PLUGIN_INFO.family(), definitions.PLUGIN_ERRORS.family()
        for record in self._registry.plugins():
            info.add_metric((record.name, record.distribution, record.version, record.status.value), 1)
        for distribution in sorted({record.distribution for record in self._registry.plugins()}):
            errors.add_metric((distribution,), self._registry.errors.get(distribution, 0))
        return (info, errors)


class ForeignCollector(Collector):
    """Plugins' own collectors: one that fails, or takes a name that is not its own, is left out."""

    def __init__(self, collectors: Sequence[tuple[str, Any]]) -> None:
        self._collectors = collectors

    def describe(self) -> Iterable[Metric]:
        """Nothing: asking is the plugins' code, and is done at a scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The families whose names begin with :data:`PLUGIN_PREFIX`, each once."""
        taken = {"lensd_plugin_info", "lensd_plugin_errors"}
        for distribution, collector in self._collectors:
            try:
                families = list(collector.collect())
                _render(families)
            except Exception as error:  # the plugin's code
                _log.error("plugin metrics failed", distribution=distribution, exc_info=error)
                continue
            for family in families:
                if family.name.startswith(PLUGIN_PREFIX) and family.name not in taken:
                    taken.add(family.name)
                    yield family
                else:
                    _log.error("plugin metric refused", distribution=distribution, metric=family.name)


def _render(families: Sequence[Metric]) -> None:
    """Raises what writing ``families`` would raise, before it can spoil the whole scrape."""

    class Only(Collector):
        def collect(self) -> Iterable[Metric]:
            return families

    registry = CollectorRegistry()
    registry.register(Only())
    generate_latest(registry)
