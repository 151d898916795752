"""Plugins' own metrics: shown when they are fit to be, never at the cost of a scrape."""

import threading
from collections.abc import Iterable
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse
from prometheus_client.samples import Exemplar, Sample

from lensd_server.plugins import AnalyzerRegistry, LoadedPlugin, PluginRecord, PluginStatus
from lensd_server.telemetry import foreign
from lensd_server.telemetry.collectors import PluginCollector
from lensd_server.telemetry.foreign import ForeignCollector
from lensd_server.telemetry.metrics import Metrics


class Foreign:
    """A plugin's collector."""

    def __init__(self, *families: Metric, error: BaseException | None = None) -> None:
        self._families, self._error = families, error

    def collect(self) -> Iterable[Metric]:
        if self._error is not None:
            raise self._error
        return self._families


class Slow:
    """A collector that answers when it is let go."""

    def __init__(self) -> None:
        self.go, self.calls = threading.Event(), 0

    def collect(self) -> Iterable[Metric]:
        self.calls += 1
        self.go.wait()
        return [gauge("lensd_plugin_slow")]


def gauge(name: str, *, label: Any = "x") -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, "Help.", labels=("kind",))
    family.add_metric((label,), 1.0)
    return family


def disguised(name: str, sample: str) -> Metric:
    family = Metric(name, "Help.", "gauge")
    family.samples = [Sample(sample, {}, 1.0)]
    return family


def scraped(collector: ForeignCollector) -> set[str]:
    """Families of plugins in a scrape that is otherwise as it always is, in both formats."""
    registry = Metrics().registry
    ours = {family.name for family in registry.collect()}
    registry.register(collector)
    assert generate_openmetrics(registry).endswith(b"# EOF\n")
    names = [family.name for family in parse(generate_latest(registry).decode())]
    assert len(names) == len(set(names))
    assert ours <= set(names)
    return set(names) - ours


def test_metrics_of_plugins_are_added_to_ours() -> None:
    made = CollectorRegistry()
    counter = Counter("lensd_plugin_hits", "Hits.", registry=made)
    counter.inc()
    histogram = Histogram("lensd_plugin_wait_seconds", "Wait.", registry=made)
    level = Gauge("lensd_plugin_level", "Level.", registry=made)
    hand_made = Foreign(gauge("lensd_plugin_good"), CounterMetricFamily("lensd_plugin_more", "More.", 1))
    collector = ForeignCollector([("one", counter), ("one", histogram), ("one", level), ("two", hand_made)])
    assert scraped(collector) == {
        "lensd_plugin_hits",
        "lensd_plugin_wait_seconds",
        "lensd_plugin_level",
        "lensd_plugin_good",
        "lensd_plugin_more",
    }


def _endless() -> Iterable[Metric]:
    family = GaugeMetricFamily("lensd_plugin_prompts", "Help.", labels=("prompt",))
    for number in range(foreign.MAX_SERIES + 1):
        family.add_metric((f"what a caller said, {number}",), 1.0)
    return [family]


def _exemplar_on_a_gauge() -> Metric:
    family = gauge("lensd_plugin_odd")
    family.samples[0] = family.samples[0]._replace(exemplar=Exemplar({"trace_id": "1"}, 1.0))
    return family


BAD = {
    "raises": (Foreign(error=RuntimeError("boom")), "collector failed"),
    "exits": (Foreign(error=SystemExit(3)), "collector failed"),
    "is-none": (object(), "collector failed"),
    "has-no-families": (Foreign("lensd_plugin_text"), "collector failed"),  # type: ignore[arg-type]
    "has-a-label-that-is-no-text": (Foreign(gauge("lensd_plugin_odd", label=object())), "collector failed"),
    "cannot-be-written-as-openmetrics": (Foreign(_exemplar_on_a_gauge()), "collector failed"),
    "has-labels-without-end": (Foreign(*_endless()), "collector failed"),
    "takes-our-name": (Foreign(gauge("lensd_draining")), "lensd_draining does not begin"),
    "takes-our-plugin-name": (Foreign(gauge("lensd_plugin_info")), "lensd_plugin_info is another's"),
    "takes-a-series-of-ours": (
        Foreign(gauge("lensd_plugin_errors_total")),
        "lensd_plugin_errors_total is another's",
    ),
    "has-no-prefix": (Foreign(gauge("up")), "up does not begin"),
    "hides-our-series": (Foreign(disguised("lensd_plugin_a", "lensd_draining")), "samples of another name"),
    "says-it-twice": (
        Foreign(disguised("lensd_plugin_b", "lensd_plugin_b"), disguised("lensd_plugin_b", "lensd_plugin_b")),
        "lensd_plugin_b is another's",
    ),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_plugin_that_misbehaves_is_left_out_and_named_once(fault: str) -> None:
    bad, problem = BAD[fault]
    good = Foreign(gauge("lensd_plugin_good"))
    collector = ForeignCollector([("bad", bad), ("good", good)])
    with structlog.testing.capture_logs() as logs:
        assert scraped(collector) - {"lensd_plugin_b"} == {"lensd_plugin_good"}
    assert [log["distribution"] for log in logs] == ["bad"]
    assert problem in logs[0]["problem"]


def test_one_sample_that_is_there_twice_is_left_out() -> None:
    family = gauge("lensd_plugin_twice")
    family.samples *= 2
    assert scraped(ForeignCollector([("bad", Foreign(family))])) == set()


def test_of_two_plugins_with_one_name_the_first_has_it() -> None:
    first = Foreign(gauge("lensd_plugin_good", label="first"))
    second = Foreign(gauge("lensd_plugin_good", label="second"), gauge("lensd_plugin_own"))
    shown = ForeignCollector([("first", first), ("second", second)]).collect()
    assert [(f.name, f.samples[0].labels["kind"]) for f in shown] == [
        ("lensd_plugin_good", "first"),
        ("lensd_plugin_own", "x"),
    ]


def test_one_that_blocks_is_left_out_until_it_answers_and_asked_only_once() -> None:
    slow, good = Slow(), Foreign(gauge("lensd_plugin_good"))
    blamed: list[str] = []
    collector = ForeignCollector([("slow", slow), ("good", good)], blamed.append, patience_s=0.05)
    assert [family.name for family in collector.collect()] == ["lensd_plugin_good"]
    assert [family.name for family in collector.collect()] == ["lensd_plugin_good"]
    assert blamed == ["slow", "slow"]
    assert slow.calls == 1
    slow.go.set()
    patient = ForeignCollector([("slow", slow), ("good", good)], blamed.append)
    assert scraped(patient) == {"lensd_plugin_slow", "lensd_plugin_good"}
    assert blamed == ["slow", "slow"]


def test_what_a_collector_does_wrong_counts_as_an_error_of_its_plugin() -> None:
    registry = AnalyzerRegistry([LoadedPlugin(PluginRecord("p", "bad", "1", PluginStatus.ACTIVE))])
    ForeignCollector([("bad", Foreign(error=RuntimeError()))], registry.count_error).collect()
    (errors,) = [f for f in PluginCollector(registry).collect() if f.name == "lensd_plugin_errors"]
    assert [(s.labels["distribution"], s.value) for s in errors.samples] == [("bad", 1.0)]
