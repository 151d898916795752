"""Plugins' own metrics, kept from harming a scrape.

Invariant: whatever a plugin's collector does (raise, block, borrow a name, invent label values
without end), the scrape ends in time with everything that is not of that plugin in it.
"""

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.registry import Collector

from lensd_server.telemetry.definitions import DEFINITIONS

#: What the name of every metric of a plugin begins with.
PLUGIN_PREFIX = "lensd_plugin_"
#: How long all plugins together may hold up a scrape.
PATIENCE_S = 1.0
#: Series that one collector may add: more is a label with request text in it.
MAX_SERIES = 1000

_SUFFIXES = ("", "_total", "_bucket", "_count", "_sum", "_gcount", "_gsum", "_info")
_OURS = frozenset(
    name
    for definition in DEFINITIONS
    for name in (definition.name, definition.name.removesuffix("_total"), *definition.series)
)

_log = structlog.get_logger("lensd.metrics")


class Refused(Exception):
    """Why a family of a plugin is left out, in a sentence for the operator."""


class ForeignCollector(Collector):
    """Asks every plugin's collectors at once and shows what is fit to be shown.

    ``failed`` is called with the distribution of a collector that raised or took too long.
    """

    def __init__(
        self,
        collectors: Sequence[tuple[str, Any]],
        failed: Callable[[str], None] = lambda _: None,
        *,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._asked = [_Asked(distribution, collector) for distribution, collector in collectors]
        self._failed, self._patience_s = failed, patience_s
        self._lock = threading.Lock()
        #: What was said of whom: a scrape every few seconds is not worth a line each time.
        self._told: set[tuple[str, str]] = set()

    def describe(self) -> Iterable[Metric]:
        """Nothing: asking is the plugins' code, and is done at a scrape."""
        return ()

    def collect(self) -> Iterable[Metric]:
        """The families whose names begin with :data:`PLUGIN_PREFIX`, each once."""
        # Two scrapes at the same time would each find the other's calls under way.
        with self._lock:
            return self._collect()

    def _collect(self) -> list[Metric]:
        until = time.monotonic() + self._patience_s
        for asked in self._asked:
            asked.ask()
        shown: list[Metric] = []
        taken = set(_OURS)
        for asked in self._asked:
            try:
                families = asked.answer(max(0.0, until - time.monotonic()))
            except Exception as error:  # the plugin's code
                self._failed(asked.distribution)
                self._tell(asked.distribution, "collector failed", error)
                continue
            for family in families:
                try:
                    taken |= _check(family, taken)
                except Refused as refused:
                    self._tell(asked.distribution, str(refused))
                else:
                    shown.append(family)
        return shown

    def _tell(self, distribution: str, problem: str, error: Exception | None = None) -> None:
        if (distribution, problem) not in self._told and len(self._told) < MAX_SERIES:
            self._told.add((distribution, problem))
            _log.error("plugin metrics left out", distribution=distribution, problem=problem, exc_info=error)


class _Asked:
    """One collector of a plugin and the call of it that is under way, never more than one."""

    def __init__(self, distribution: str, collector: Any) -> None:
        self.distribution = distribution
        self._collector = collector
        self._done = threading.Event()
        self._done.set()
        self._families: list[Metric] = []
        self._error: BaseException | None = None

    def ask(self) -> None:
        """Starts a call, unless an earlier one has not come back."""
        if self._done.is_set():
            self._done.clear()
            threading.Thread(target=self._call, name="lensd-plugin-metrics", daemon=True).start()

    def answer(self, patience_s: float) -> list[Metric]:
        """What it answered. Raises what it raised, and TimeoutError."""
        if not self._done.wait(patience_s):
            raise TimeoutError("the collector has not answered; it is left out until it has")
        if self._error is not None:
            raise RuntimeError("the collector raised") from self._error
        return self._families

    def _call(self) -> None:
        self._families, self._error = [], None
        try:
            self._families = _families(self._collector)
        except BaseException as error:  # the plugin's code, which may even call sys.exit
            self._error = error
        finally:
            self._done.set()


def _families(collector: Any) -> list[Metric]:
    """Copies of everything it has to say. Raises whatever is wrong with that."""
    families: list[Metric] = []
    series = 0
    for family in collector.collect():
        copy = Metric(family.name, family.documentation, family.type, family.unit)
        # `_created` is switched off for ours, too.
        copy.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        series += len(copy.samples)
        if series > MAX_SERIES:
            raise ValueError(f"more than {MAX_SERIES} series: a label must not hold what a request says")
        families.append(copy)
    _render(families)
    return families


def _check(family: Metric, taken: set[str]) -> set[str]:
    """The names it uses, which nobody else may use after it. Raises Refused."""
    names = {family.name, *(sample.name for sample in family.samples)}
    if not family.name.startswith(PLUGIN_PREFIX):
        raise Refused(f"{family.name} does not begin with {PLUGIN_PREFIX}")
    strange = names - {f"{family.name}{suffix}" for suffix in _SUFFIXES}
    if strange:
        raise Refused(f"{family.name} has samples of another name: {min(strange)}")
    if names & taken:
        raise Refused(f"{min(names & taken)} is another's name")
    labels = [(sample.name, frozenset(sample.labels.items())) for sample in family.samples]
    if len(set(labels)) < len(labels):
        raise Refused(f"{family.name} says one thing twice")
    return names


def _render(families: Sequence[Metric]) -> None:
    """Raises what writing ``families`` would raise, before it can spoil the whole scrape."""

    class Only(Collector):
        def collect(self) -> Iterable[Metric]:
            return families

    registry = CollectorRegistry()
    registry.register(Only())
    generate_latest(registry)
    generate_openmetrics(registry)
