"""Every metric the dashboards may use is in a scrape, with the labels it is meant to have."""

import re
from collections.abc import Iterable
from typing import Any

import pytest
import structlog
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from lensd_api.hookspecs import AnalysisRecord
from lensd_server.engine.events import ModelState, ModelStatus
from lensd_server.engine.observers import BatchRecord
from lensd_server.plugins import AnalyzerRegistry, LoadedPlugin, PluginRecord, PluginStatus
from lensd_server.telemetry.collectors import ForeignCollector, ModelCollector, PluginCollector
from lensd_server.telemetry.definitions import DEFINITIONS, UNITS
from lensd_server.telemetry.metrics import Metrics

#: Names as a parsed scrape has them: without a counter's suffix.
FAMILIES = {d.name.removesuffix("_total"): (d.kind, set(d.labels)) for d in DEFINITIONS}

USAGE = {"queue_s": 0.1, "forward_s": 0.2, "compute_s": 0.3, "shared_rows": 4}


@pytest.fixture
def metrics() -> Metrics:
    """Metrics of a daemon with one model and one plugin, after one of everything."""
    metrics = Metrics()
    registry = AnalyzerRegistry([LoadedPlugin(PluginRecord("dla", "lensd-dla", "1", PluginStatus.ACTIVE))])
    status = ModelStatus("tiny", "dir:/t", ModelState.RESIDENT, resident_bytes=9, leases=2)
    metrics.registry.register(ModelCollector(lambda: [status]))
    metrics.registry.register(PluginCollector(registry))
    metrics.grpc_requests.labels("s", "m", "OK").inc()
    metrics.grpc_duration.labels("s", "m").observe(0.1)
    metrics.grpc_in_flight.labels("s", "m").inc()
    metrics.grpc_messages.labels("s", "m", "sent").inc()
    metrics.started(AnalysisRecord("r", "dla", "tiny"))
    metrics.first_result("dla", "tiny", 0.1)
    metrics.finished(AnalysisRecord("r", "dla", "tiny", outcome="ok", seconds=0.6, usage=USAGE))
    metrics.rejected("QUEUE_FULL")
    metrics.cancel_took("tiny", 0.01)
    metrics.queue_changed("tiny", 3, 30)
    metrics.batch_ran(BatchRecord("tiny", rows=2, tokens=6, padded_tokens=8, seconds=0.1))
    metrics.load_finished("tiny", "ok", 1.0)
    return metrics


def test_a_scrape_holds_every_metric_with_its_type_and_labels(metrics: Metrics) -> None:
    found: dict[str, tuple[str, set[str]]] = {}
    for family in parse(generate_latest(metrics.registry).decode()):
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        found[family.name] = (family.type, labels)
    assert found == FAMILIES


def test_it_can_be_read_as_openmetrics(metrics: Metrics) -> None:
    names = {family.name for family in parse_openmetrics(generate_openmetrics(metrics.registry).decode())}
    assert names == set(FAMILIES)


def test_there_are_no_created_series(metrics: Metrics) -> None:
    assert "_created" not in generate_latest(metrics.registry).decode()
    assert "_created" not in generate_openmetrics(metrics.registry).decode()


def test_each_metric_is_defined_once_with_a_name_that_says_its_unit() -> None:
    names = [definition.name for definition in DEFINITIONS]
    assert len(names) == len(set(names)) >= 30
    for definition in DEFINITIONS:
        assert re.fullmatch(r"lensd(_[a-z]+)+", definition.name)
        assert definition.name.endswith("_total") == (definition.kind == "counter"), definition.name
        assert definition.kind != "histogram" or definition.unit in UNITS, definition.name
        assert re.fullmatch(r"[A-Z0-9a-z].{5,100}\.", definition.help), definition.name
        assert len(definition.labels) <= 4, definition.name


def test_openmetrics_says_the_unit(metrics: Metrics) -> None:
    text = generate_openmetrics(metrics.registry).decode()
    units = dict(re.findall(r"^# UNIT (\S+) (\S+)$", text, re.MULTILINE))
    assert units == {d.name: d.unit for d in DEFINITIONS if d.unit and d.kind != "counter"}


def test_what_an_analysis_took_is_counted_once_it_is_over(metrics: Metrics) -> None:
    value = metrics.registry.get_sample_value
    labels = {"analyzer": "dla", "model": "tiny"}
    assert value("lensd_analyses_total", {**labels, "outcome": "ok"}) == 1
    assert value("lensd_analyses_in_flight", labels) == 0
    for stage, seconds in (("queue", 0.1), ("forward", 0.2), ("compute", 0.3), ("total", 0.6)):
        assert value(f"lensd_analysis_{stage}_seconds_sum", labels) == seconds
    assert value("lensd_rows_shared_total", {"model": "tiny"}) == 4
    assert value("lensd_batch_padding_ratio_sum", {"model": "tiny"}) == 0.25


def test_an_analysis_that_was_refused_has_an_outcome_and_no_duration(metrics: Metrics) -> None:
    value = metrics.registry.get_sample_value
    metrics.finished(AnalysisRecord("x", "", "", outcome="client_error", usage=USAGE))
    empty = {"analyzer": "", "model": ""}
    assert value("lensd_analyses_total", {**empty, "outcome": "client_error"}) == 1
    assert value("lensd_analysis_total_seconds_count", empty) is None
    assert value("lensd_analyses_in_flight", empty) is None


def test_two_analyses_with_one_identifier_are_both_in_flight() -> None:
    metrics, record = Metrics(), AnalysisRecord("same", "a", "m", outcome="ok", usage=USAGE)
    value = metrics.registry.get_sample_value
    labels = {"analyzer": "a", "model": "m"}
    metrics.started(record)
    metrics.started(record)
    metrics.finished(record)
    assert value("lensd_analyses_in_flight", labels) == 1
    metrics.finished(record)
    assert value("lensd_analyses_in_flight", labels) == 0
    assert value("lensd_analysis_total_seconds_count", labels) == 2


def test_a_model_is_in_exactly_one_state(metrics: Metrics) -> None:
    value = metrics.registry.get_sample_value
    states = {s: value("lensd_model_state", {"model": "tiny", "state": s.value}) for s in ModelState}
    assert states == {s: float(s is ModelState.RESIDENT) for s in ModelState}


class Foreign:
    """A plugin's collector."""

    def __init__(self, *families: Metric, error: Exception | None = None) -> None:
        self._families, self._error = families, error

    def collect(self) -> Iterable[Metric]:
        if self._error is not None:
            raise self._error
        return self._families


def gauge(name: str, *, label: Any = "x") -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, "Help.", labels=("kind",))
    family.add_metric((label,), 1.0)
    return family


def test_metrics_of_plugins_are_added_and_bad_ones_left_out(metrics: Metrics) -> None:
    collectors = [
        ("good", Foreign(gauge("lensd_plugin_good"), CounterMetricFamily("lensd_plugin_hits", "Hits.", 1))),
        ("failing", Foreign(error=RuntimeError("boom"))),
        ("greedy", Foreign(gauge("lensd_draining"), gauge("up"), gauge("lensd_plugin_info"))),
        ("copycat", Foreign(gauge("lensd_plugin_good"), gauge("lensd_plugin_own"))),
        ("unprintable", Foreign(gauge("lensd_plugin_odd", label=object()))),
        ("no-collector", object()),
    ]
    metrics.registry.register(ForeignCollector(collectors))
    with structlog.testing.capture_logs() as logs:
        families = {f.name for f in parse(generate_latest(metrics.registry).decode())}
    assert families - set(FAMILIES) == {"lensd_plugin_good", "lensd_plugin_hits", "lensd_plugin_own"}
    blamed = [log["distribution"] for log in logs]
    assert blamed == ["failing", "greedy", "greedy", "greedy", "copycat", "unprintable", "no-collector"]
