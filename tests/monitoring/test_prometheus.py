"""A real Prometheus watches a real daemon: every expression has something to say, and alerts are right."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from lensd_server.telemetry.definitions import DEFINITIONS
from lensd_server.telemetry.monitoring.alerts import ALERTS
from tests.monitoring import expressions, scenario
from tests.monitoring.prometheus import MISSING, PROGRAM, Prometheus, running_prometheus
from tests.monitoring.scenario import Target

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason=MISSING),
]

#: For rates, in place of Grafana's own choice: many scrapes here, some of which a busy machine misses.
WINDOW = "30s"
#: What must be shown once these things were broken on purpose.
BROKEN = {"LensdModelLoadFailing", "LensdPluginQuarantined"}


@dataclass(frozen=True)
class Watched:
    """A daemon that did everything, with who watched it, since when, and what fired before it was broken."""

    target: Target
    prometheus: Prometheus
    since: float
    fired_when_healthy: set[str]
    scrape: str


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """One run for all tests here: starting and loading takes most of the time."""
    root = tmp_path_factory.mktemp("watched")
    with (
        scenario.watched_daemon(root) as target,
        running_prometheus(root / "monitoring", target.daemon.metrics) as prometheus,
    ):
        since = time.time()
        scenario.serve_callers(target, seconds=20)
        scenario.serve_traced(target)
        scenario.misbehave(target)
        prometheus.until(
            "a rule evaluated after the load",
            lambda: bool(prometheus.query("job:lensd_analyses_failed:ratio_rate5m")),
        )
        healthy = prometheus.firing()
        scenario.break_things(target)
        scenario.serve_dla(target, seconds=3)
        prometheus.until("the alerts on what was broken", lambda: prometheus.firing() >= BROKEN)
        yield Watched(target, prometheus, since, healthy, target.daemon.scrape())


@pytest.mark.parametrize(("where", "expr", "quiet"), list(expressions.of_dashboards()))
def test_every_expression_of_a_dashboard_has_something_to_show(
    watched: Watched, where: str, expr: str, quiet: bool
) -> None:
    filled = expressions.filled_in(expr, WINDOW)
    found = watched.prometheus.over(filled, watched.since, time.time())
    assert found, f"{where} is empty: {filled}"
    values = [value for series in found for value in series.values if value == value]
    assert values, f"{where} is never a number"
    if not quiet:
        assert min(values) >= 0, where


def test_every_rule_can_be_evaluated(watched: Watched) -> None:
    groups = watched.prometheus.ask("rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(list(expressions.of_rules()))
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] != "ok"} == {}


def test_a_healthy_daemon_fires_nothing_and_a_broken_one_just_what_is_broken(watched: Watched) -> None:
    assert watched.fired_when_healthy == set()
    assert watched.prometheus.firing() == BROKEN
    alerts = watched.prometheus.ask("alerts")["alerts"]
    told = {alert["labels"]["alertname"]: alert["annotations"] for alert in alerts}
    assert (
        told["LensdPluginQuarantined"]["summary"] == f"{watched.target.daemon.metrics} switched off stranger"
    )
    assert (
        told["LensdModelLoadFailing"]["summary"] == f"{watched.target.daemon.metrics} could not load broken"
    )
    assert told["LensdModelLoadFailing"]["runbook_url"] == "runbook.md#lensdmodelloadfailing"


def test_every_metric_an_expression_asks_for_is_in_the_scrape_with_its_labels(watched: Watched) -> None:
    samples: dict[str, list[dict[str, str]]] = {}
    for family in parse(watched.scrape):
        for sample in family.samples:
            samples.setdefault(sample.name, []).append({**sample.labels, "job": "lensd", "instance": "a"})
    every = [*(e for _, e, _ in expressions.of_dashboards()), *(e for _, e in expressions.of_rules())]
    for expr in every:
        for selector in expressions.asked(expr).selectors:
            if selector.name in expressions.OF_PROMETHEUS | expressions.recorded():
                continue
            there = samples.get(selector.name)
            assert there, f"{selector.name} is not in the scrape: {expr}"
            for label, _, pattern in selector.matchers:
                assert any(label in sample for sample in there), f"{selector.name} has no label {label}"
                if label not in expressions.OF_A_SCRAPE:
                    # Each alternative that is asked for, or left out, has been seen for real or is a known value.
                    seen = {sample.get(label, "") for sample in there}
                    assert any(re.fullmatch(pattern, value) for value in seen), (label, pattern, seen)


def test_promtool_finds_no_fault_with_the_scrape(watched: Watched) -> None:
    promtool = shutil.which("promtool")
    assert promtool is not None
    done = subprocess.run(
        [promtool, "check", "metrics"], input=watched.scrape, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_slow_point_leads_to_the_trace_it_belongs_to(watched: Watched) -> None:
    found = watched.prometheus.ask(
        "query_exemplars", query="lensd_analysis_total_seconds_bucket", start=watched.since, end=time.time()
    )
    exemplars = [exemplar["labels"] for series in found for exemplar in series["exemplars"]]
    assert {"trace_id": scenario.TRACE} in exemplars
    assert [series["seriesLabels"]["analyzer"] for series in found] == ["dla"]


def test_nothing_a_caller_invents_is_in_a_scrape_and_inventing_more_adds_no_series(watched: Watched) -> None:
    scenario.invent_names(watched.target, start=0, count=2)
    before = watched.target.daemon.scrape()
    scenario.invent_names(watched.target, start=2, count=20)
    after = watched.target.daemon.scrape()
    assert scenario.HOSTILE not in after
    assert _series(after) == _series(before)


def _series(scrape: str) -> set[str]:
    return {line.rpartition(" ")[0] for line in scrape.splitlines() if not line.startswith("#")}


def test_every_metric_that_is_defined_is_in_the_scrape(watched: Watched) -> None:
    names = {sample.name for family in parse(watched.scrape) for sample in family.samples}
    assert [d.name for d in DEFINITIONS if not set(d.series) <= names] == []


def test_every_alert_is_known_to_prometheus_by_the_name_it_has_in_the_runbook(watched: Watched) -> None:
    rules = [rule for group in watched.prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules if rule["type"] == "alerting"} == {alert.name for alert in ALERTS}
