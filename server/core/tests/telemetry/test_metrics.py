"""Every metric the dashboards may use is in a scrape, with the labels it is meant to have."""

import re
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from lensd_api.hookspecs import AnalysisRecord
from lensd_server.access.certificates import Certificates
from lensd_server.engine import running
from lensd_server.engine.events import DeviceMemory, ModelState, ModelStatus, ReplicaStatus
from lensd_server.engine.observers import OUTCOMES, BatchRecord
from lensd_server.plugins import AnalyzerRegistry, LoadedPlugin, PluginRecord, PluginStatus
from lensd_server.telemetry import definitions
from lensd_server.telemetry.collectors import (
    CertificateCollector,
    MemoryCollector,
    ModelCollector,
    PluginCollector,
    ResidentCollector,
)
from lensd_server.telemetry.definitions import DEFINITIONS, UNITS
from lensd_server.telemetry.metrics import MAX_REASONS, Metrics

#: Names as a parsed scrape has them: without a counter's suffix.
FAMILIES = {d.name.removesuffix("_total"): (d.kind, set(d.labels)) for d in DEFINITIONS}

USAGE = {"queue_s": 0.1, "forward_s": 0.2, "compute_s": 0.3, "shared_rows": 4}


@pytest.fixture
def metrics(authority: Any) -> Metrics:
    """Metrics of a daemon with one model and one plugin, after one of everything."""
    metrics = Metrics()
    registry = AnalyzerRegistry([LoadedPlugin(PluginRecord("dla", "lensd-dla", "1", PluginStatus.ACTIVE))])
    replicas = (ReplicaStatus(ModelState.RESIDENT, "cuda:0"), ReplicaStatus(ModelState.LOADING))
    status = ModelStatus("tiny", "dir:/t", ModelState.RESIDENT, resident_bytes=9, leases=2, replicas=replicas)
    metrics.registry.register(ModelCollector(lambda: [status]))
    metrics.registry.register(ResidentCollector(definitions.MODEL_HOOKS, lambda: {"tiny": 0}))
    metrics.registry.register(ResidentCollector(definitions.MODEL_KEPT, lambda: {"tiny": 0}))
    metrics.registry.register(ResidentCollector(definitions.MODEL_BATCH_TOKENS, lambda: {"tiny": 512}))
    metrics.registry.register(PluginCollector(registry))
    pair = authority.issue("server")
    metrics.registry.register(CertificateCollector({"public": Certificates(pair.cert, pair.key)}))
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
    metrics.evicted("tiny", "idle")
    metrics.registry.register(MemoryCollector(lambda: [DeviceMemory("cpu", 100, 60, 50)]))
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
        assert re.fullmatch(r"(lensd|process)(_[a-z]+)+", definition.name)
        assert definition.name.endswith("_total") == (definition.kind == "counter"), definition.name
        assert definition.kind != "histogram" or definition.unit in UNITS, definition.name
        assert re.fullmatch(r"[A-Z0-9a-z].{5,100}\.", definition.help), definition.name
        assert len(definition.labels) <= 4, definition.name


def test_openmetrics_says_the_unit(metrics: Metrics) -> None:
    text = generate_openmetrics(metrics.registry).decode()
    units = dict(re.findall(r"^# UNIT (\S+) (\S+)$", text, re.MULTILINE))
    ours = [d for d in DEFINITIONS if d.name.startswith("lensd_")]
    assert units == {d.name: d.unit for d in ours if d.unit and d.kind != "counter"}


def test_what_an_analysis_took_is_counted_once_it_is_over(metrics: Metrics) -> None:
    value = metrics.registry.get_sample_value
    labels = {"analyzer": "dla", "model": "tiny"}
    assert value("lensd_analyses_total", {**labels, "outcome": "ok"}) == 1
    assert value("lensd_analyses_in_flight", labels) == 0
    for stage, seconds in (("queue", 0.1), ("forward", 0.2), ("compute", 0.3), ("total", 0.6)):
        assert value(f"lensd_analysis_{stage}_seconds_sum", labels) == seconds
    assert value("lensd_rows_shared_total", {"model": "tiny"}) == 4
    assert value("lensd_batch_padding_ratio_sum", {"model": "tiny"}) == pytest.approx(8 / 6)


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


def test_reasons_of_rejections_are_bounded_whatever_a_plugin_makes_of_them() -> None:
    metrics = Metrics()
    for reason in (
        "QUEUE_FULL",
        "no such reason",
        'ignore "all"\n',
        "",
        "X" * 200,
        *(f"R{n}" for n in range(99)),
    ):
        metrics.rejected(reason)
    counted = {s.labels["reason"]: s.value for f in metrics.rejections.collect() for s in f.samples}
    assert counted["QUEUE_FULL"] == 1
    assert len(counted) == MAX_REASONS + 1
    assert sum(counted.values()) == 104, "each is counted, under its own name or another"
    assert all(re.fullmatch("[A-Z][A-Z0-9_]+", reason) for reason in counted)


def test_what_alerts_ask_for_is_zero_before_it_happens() -> None:
    metrics = Metrics()
    metrics.expect(["tiny"])
    value = metrics.registry.get_sample_value
    assert value("lensd_model_loads_total", {"model": "tiny", "outcome": "failed"}) == 0
    for reason in ("QUEUE_FULL", "CALLER_SHARE", "QUOTA_EXCEEDED", "DRAINING", "LOAD_FAILED", "DEVICE_OOM"):
        assert value("lensd_rejected_total", {"reason": reason}) == 0
    metrics.started(AnalysisRecord("r", "dla", "tiny"))
    outcomes = {
        outcome: value("lensd_analyses_total", {"analyzer": "dla", "model": "tiny", "outcome": outcome})
        for outcome in OUTCOMES
    }
    assert outcomes == dict.fromkeys(OUTCOMES, 0)
    assert {label for _, label in running._OUTCOMES} | {"ok", "internal"} == set(OUTCOMES)


def test_a_load_that_nobody_wanted_any_more_counts_but_took_no_time(metrics: Metrics) -> None:
    metrics.load_finished("tiny", "cancelled", 9.0)
    text = generate_latest(metrics.registry).decode()
    assert 'lensd_model_loads_total{model="tiny",outcome="cancelled"} 1.0' in text
    assert 'lensd_model_load_seconds_count{model="tiny"} 1.0' in text


def test_a_device_without_a_bound_has_no_budget() -> None:
    registry = CollectorRegistry()
    registry.register(MemoryCollector(lambda: [DeviceMemory("cpu", None, 60, 50)]))
    text = generate_latest(registry).decode()
    assert 'kind="budget"' not in text
    assert 'lensd_device_memory_bytes{device="cpu",kind="reserved"} 60.0' in text
