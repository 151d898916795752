"""Metrics that are read when they are scraped: models, plugins and certificates."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from lensd_server.access.certificates import Certificates
from lensd_server.engine.events import DeviceMemory, ModelState, ModelStatus
from lensd_server.plugins import AnalyzerRegistry
from lensd_server.telemetry import definitions


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
        replicas = definitions.MODEL_REPLICAS.family()
        resident = definitions.MODEL_RESIDENT.family()
        leases = definitions.MODEL_LEASES.family()
        waiting = definitions.MODEL_WAITING.family()
        for status in self._statuses():
            for candidate in ModelState:
                state.add_metric((status.name, candidate.value), float(candidate is status.state))
            there = sum(replica.state is ModelState.RESIDENT for replica in status.replicas)
            replicas.add_metric((status.name,), there)
            resident.add_metric((status.name,), status.resident_bytes)
            leases.add_metric((status.name,), status.leases)
            waiting.add_metric((status.name,), status.waiting)
        return (state, replicas, resident, leases, waiting)


class MemoryCollector(Collector):
    """Budget and use of the devices."""

    def __init__(self, memory: Callable[[], Sequence[DeviceMemory]]) -> None:
        self._memory = memory

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is is known at a scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """One sample a device and kind; a device without a bound has no budget."""
        family = definitions.DEVICE_MEMORY.family()
        for device in self._memory():
            if device.budget is not None:
                family.add_metric((device.device, "budget"), device.budget)
            family.add_metric((device.device, "reserved"), device.reserved)
            family.add_metric((device.device, "used"), device.used)
        return (family,)


class ResidentCollector(Collector):
    """One number of each resident model."""

    def __init__(
        self, definition: definitions.GaugeDefinition, by_model: Callable[[], Mapping[str, int]]
    ) -> None:
        self._definition, self._by_model = definition, by_model

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is is known at a scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """One sample a model."""
        family = self._definition.family()
        for model, number in self._by_model().items():
            family.add_metric((model,), number)
        return (family,)


class CertificateCollector(Collector):
    """The certificates of the listeners that speak TLS."""

    def __init__(self, by_listener: Mapping[str, Certificates]) -> None:
        self._by_listener = by_listener

    def describe(self) -> Iterable[Metric]:
        """Nothing: what there is is known at a scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """One sample a listener, of the files as they are now."""
        expiry = definitions.CERTIFICATE_EXPIRY.family()
        for listener, certificates in self._by_listener.items():
            certificates.refresh()
            expiry.add_metric((listener,), certificates.not_after.timestamp())
        return (expiry,)


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
