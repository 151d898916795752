"""Each alert fires when it should, says what it should, and is silent on a healthy daemon.

Run by Prometheus' own `promtool test rules`.
"""

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from lensd_server.telemetry.monitoring.alerts import ALERTS, GROUPS
from lensd_server.telemetry.monitoring.files import files
from lensd_server.telemetry.monitoring.rules import Alert, annotations

PROMTOOL = shutil.which("promtool")
pytestmark = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed: apt-get install prometheus"
)

#: A daemon as it should be: two hundred analyses a minute, a few of them refused or the callers' fault.
HEALTHY = {
    'up{job="lensd",instance="a"}': "1x6000",
    'lensd_model_state{job="lensd",instance="a",model="m",state="resident"}': "1x6000",
    'lensd_model_state{job="lensd",instance="a",model="m",state="failed"}': "0x6000",
    'lensd_model_state{job="lensd",instance="a",model="n",state="cold"}': "1x6000",
    'lensd_model_loads_total{job="lensd",instance="a",model="m",outcome="ok"}': "0 1x5999",
    'lensd_model_loads_total{job="lensd",instance="a",model="m",outcome="failed"}': "0x6000",
    'lensd_analyses_total{job="lensd",instance="a",analyzer="dla",model="m",outcome="ok"}': "0+200x6000",
    'lensd_analyses_total{job="lensd",instance="a",analyzer="dla",model="m",outcome="client_error"}': "0+50x6000",
    'lensd_analyses_total{job="lensd",instance="a",analyzer="dla",model="m",outcome="internal"}': "0x6000",
    'lensd_analyses_total{job="lensd",instance="a",analyzer="dla",model="m",outcome="plugin_error"}': "0x6000",
    'lensd_rejected_total{job="lensd",instance="a",reason="QUEUE_FULL"}': "0+2x6000",
    'lensd_rejected_total{job="lensd",instance="a",reason="DRAINING"}': "0+100x6000",
    'lensd_analysis_queue_seconds_bucket{job="lensd",instance="a",analyzer="dla",model="m",le="0.1"}': "0+200x6000",
    'lensd_analysis_queue_seconds_bucket{job="lensd",instance="a",analyzer="dla",model="m",le="30"}': "0+200x6000",
    'lensd_analysis_queue_seconds_bucket{job="lensd",instance="a",analyzer="dla",model="m",le="60"}': "0+200x6000",
    'lensd_analysis_queue_seconds_bucket{job="lensd",instance="a",analyzer="dla",model="m",le="+Inf"}': "0+200x6000",
    'lensd_event_loop_lag_seconds_bucket{job="lensd",instance="a",le="0.1"}': "0+240x6000",
    'lensd_event_loop_lag_seconds_bucket{job="lensd",instance="a",le="1"}': "0+240x6000",
    'lensd_event_loop_lag_seconds_bucket{job="lensd",instance="a",le="+Inf"}': "0+240x6000",
    'lensd_model_evictions_total{job="lensd",instance="a",model="m",reason="idle"}': "0+1x6000",
    'lensd_model_evictions_total{job="lensd",instance="a",model="m",reason="turn"}': "0x6000",
    'lensd_draining{job="lensd",instance="a"}': "0x6000",
    # promtool begins at second 0.
    'lensd_tls_certificate_expiry_timestamp_seconds{job="lensd",instance="a",listener="public"}': "9000000x6000",
    'lensd_plugin_info{job="lensd",instance="a",plugin="p",distribution="lensd-p",version="1",status="active"}': "1x6000",
    'lensd_config_reloads_total{job="lensd",instance="a",outcome="ok"}': "0 1 2 3x6000",
    'lensd_config_reloads_total{job="lensd",instance="a",outcome="refused"}': "0x6000",
    'lensd_audit_lines_lost_total{job="lensd",instance="a"}': "0x6000",
}

_ANALYSES = 'lensd_analyses_total{job="lensd",instance="a",analyzer="dla",model="m",outcome="%s"}'
_STATE = 'lensd_model_state{job="lensd",instance="a",model="m",state="%s"}'
_QUEUE = 'lensd_analysis_queue_seconds_bucket{job="lensd",instance="a",analyzer="dla",model="m",le="%s"}'
_EXPIRY = 'lensd_tls_certificate_expiry_timestamp_seconds{job="lensd",instance="a",listener="public"}'
_EVICTIONS = 'lensd_model_evictions_total{job="lensd",instance="a",model="m",reason="%s"}'
_LAG = 'lensd_event_loop_lag_seconds_bucket{job="lensd",instance="a",le="%s"}'


@dataclass(frozen=True)
class Case:
    """``series`` in place of the healthy ones; ``None`` takes one away. Times in promtool's notation."""

    alert: str
    series: Mapping[str, str | None]
    #: Fires at this time with these labels and this summary ...
    at: str
    summary: str
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    #: ... and does not yet, or no longer, at these.
    silent_at: tuple[str, ...] = ()
    #: How often rules are evaluated: days of minutes take promtool minutes.
    every: str = "1m"


_ONE = {"job": "lensd", "instance": "a"}

CASES = [
    Case(
        "LensdDown",
        {'up{job="lensd",instance="a"}': "1x9 0x60"},
        at="13m",
        summary="lensd a does not answer scrapes",
        labels=_ONE,
        silent_at=("9m", "11m"),
    ),
    Case(
        "LensdDown",
        {'up{job="lensd",instance="a"}': None},
        at="13m",
        summary="lensd  does not answer scrapes",
        labels={"job": "lensd"},
        silent_at=("1m",),
    ),
    Case(
        "LensdNoReadyModel",
        {_STATE % "resident": "1x5 0x60", _STATE % "loading": "0x5 1x60"},
        at="17m",
        summary="lensd a has no model in memory",
        labels=_ONE,
        silent_at=("5m", "14m"),
    ),
    Case(
        "LensdErrorBudgetBurningFast",
        # A fiftieth of two hundred a minute, for an hour: the one-hour window sees it within minutes.
        {_ANALYSES % "internal": "0x60 0+4x60"},
        at="115m",
        summary="1.768% of analyses of lensd fail by the server's fault",
        labels={"job": "lensd"},
        silent_at=("60m", "75m"),
    ),
    Case(
        "LensdErrorBudgetBurningFast",
        # Six in a thousand and more, for six hours: only the longer windows see it.
        {_ANALYSES % "plugin_error": "0x60 0+2x1000"},
        at="15h",
        every="15m",
        summary="0.9901% of analyses of lensd fail by the server's fault",
        labels={"job": "lensd"},
        silent_at=("60m", "120m"),
    ),
    Case(
        "LensdErrorBudgetBurningSlowly",
        # Half a percent: spends the budget five times too fast, which a day's window tells.
        {_ANALYSES % "device_oom": "0+1x6000"},
        at="2d",
        every="30m",
        summary="0.4975% of analyses of lensd fail by the server's fault",
        labels={"job": "lensd"},
        silent_at=("5m",),
    ),
    Case(
        "LensdQueueWaitLong",
        {_QUEUE % "0.1": "0+200x5 1000x60", _QUEUE % "30": "0+200x5 1000x60"},
        at="20m",
        summary="one in a hundred analyses of m waits 59.7s",
        labels={"job": "lensd", "model": "m"},
        silent_at=("5m", "15m"),
    ),
    Case(
        "LensdRejecting",
        {'lensd_rejected_total{job="lensd",instance="a",reason="QUEUE_FULL"}': "0x5 0+125x60"},
        at="25m",
        summary="lensd refuses 50% of analyses",
        labels={"job": "lensd"},
        silent_at=("5m", "14m"),
    ),
    Case(
        "LensdRejecting",
        # What overload looks like behind one gateway.
        {'lensd_rejected_total{job="lensd",instance="a",reason="CALLER_SHARE"}': "0x5 0+123x60"},
        at="25m",
        summary="lensd refuses 50% of analyses",
        labels={"job": "lensd"},
        silent_at=("5m", "14m"),
    ),
    Case(
        "LensdEventLoopLag",
        {_LAG % "0.1": "0+240x5 1200x60"},
        at="15m",
        summary="the event loop of a is 991ms late",
        labels=_ONE,
        silent_at=("5m", "10m"),
    ),
    Case(
        "LensdModelLoadFailing",
        {'lensd_model_loads_total{job="lensd",instance="a",model="m",outcome="failed"}': "0x9 1x90"},
        at="12m",
        summary="a could not load m",
        labels={**_ONE, "model": "m", "outcome": "failed"},
        silent_at=("9m", "30m"),
    ),
    Case(
        "LensdEvictionThrash",
        {_EVICTIONS % "turn": "0x5 0+1x15 15x60"},
        at="20m",
        summary="a evicted models that were wanted 14 times in 15 minutes",
        labels=_ONE,
        silent_at=("5m", "10m", "40m"),
    ),
    Case(
        "LensdDrainStuck",
        {'lensd_draining{job="lensd",instance="a"}': "0x9 1x60"},
        at="16m",
        summary="a has been draining for minutes",
        labels=_ONE,
        silent_at=("9m", "12m"),
    ),
    Case(
        "LensdConfigRefused",
        {'lensd_config_reloads_total{job="lensd",instance="a",outcome="refused"}': "0x9 1x60"},
        at="12m",
        summary="a refused its new configuration",
        labels={**_ONE, "outcome": "refused"},
        silent_at=("9m", "30m"),
    ),
    Case(
        "LensdAuditNotWritten",
        {'lensd_audit_lines_lost_total{job="lensd",instance="a"}': "0x9 3x60"},
        at="12m",
        summary="a cannot write its audit",
        labels=_ONE,
        silent_at=("9m", "30m"),
    ),
    Case(
        "LensdCertificateExpiresSoon",
        {_EXPIRY: "1036800x20 9000000x60"},
        at="16m",
        summary="the certificate of a (public) expires in 11d 23h 44m 0s",
        labels={**_ONE, "listener": "public"},
        silent_at=("10m", "30m"),
    ),
    Case(
        "LensdCertificateExpires",
        {_EXPIRY: "90000x20 9000000x60"},
        at="16m",
        summary="the certificate of a (public) expires in 1d 0h 44m 0s",
        labels={**_ONE, "listener": "public"},
        silent_at=("10m", "30m"),
    ),
    Case(
        "LensdPluginQuarantined",
        {
            'lensd_plugin_info{job="lensd",instance="a",plugin="p",distribution="lensd-p",version="1",status="active"}': "1x9 _x50",
            'lensd_plugin_info{job="lensd",instance="a",plugin="p",distribution="lensd-p",version="1",status="quarantined"}': "_x10 1x50",
        },
        at="12m",
        summary="a switched off lensd-p",
        labels={**_ONE, "plugin": "p", "distribution": "lensd-p", "version": "1", "status": "quarantined"},
        silent_at=("9m",),
    ),
]


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that `lensd dashboards` writes."""
    folder = tmp_path_factory.mktemp("rules")
    for name, text in files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "prometheus"


def promtool(*arguments: str) -> str:
    done = subprocess.run([PROMTOOL or "promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run(
    rules: Path, series: Mapping[str, str | None], expected: list[dict[str, Any]], every: str = "1m"
) -> None:
    """Evaluates all rules on ``series`` and compares what fires."""
    given = {**HEALTHY, **series}
    document = {
        "rule_files": [str(rules / "lensd-rules.yml")],
        "evaluation_interval": every,
        # Otherwise by chance: an alert would look for what is recorded only after it.
        "group_eval_order": [group.name for group in GROUPS],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": k, "values": v} for k, v in given.items() if v is not None],
                "alert_rule_test": expected,
            }
        ],
    }
    path = rules / "test.yml"
    path.write_text(yaml.safe_dump(document))
    promtool("test", "rules", str(path))


def by_name(name: str) -> Alert:
    return next(alert for alert in ALERTS if alert.name == name)


def test_promtool_accepts_the_rules_and_the_example_configuration(rules: Path) -> None:
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(rules / "lensd-rules.yml"))
    promtool("check", "config", str(rules / "prometheus.yml"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert} at {case.at}")
def test_an_alert_fires_when_it_should_and_says_so(rules: Path, case: Case) -> None:
    alert = by_name(case.alert)
    fires = {
        "exp_labels": {**case.labels, "severity": alert.severity},
        "exp_annotations": {**annotations(alert), "summary": case.summary},
    }
    expected = [{"eval_time": case.at, "alertname": alert.name, "exp_alerts": [fires]}]
    expected += [{"eval_time": time, "alertname": alert.name, "exp_alerts": []} for time in case.silent_at]
    run(rules, case.series, expected, case.every)


def test_every_alert_has_a_case() -> None:
    assert {case.alert for case in CASES} == {alert.name for alert in ALERTS}


@pytest.mark.parametrize(("every", "times"), [("1m", ("1m", "30m", "2h")), ("1h", ("1d", "4d"))])
def test_nothing_fires_on_a_healthy_daemon(rules: Path, every: str, times: tuple[str, ...]) -> None:
    expected = [
        {"eval_time": time, "alertname": alert.name, "exp_alerts": []} for alert in ALERTS for time in times
    ]
    run(rules, {}, expected, every)


def test_few_failures_wake_nobody_whatever_their_share(rules: Path) -> None:
    one_in_three = {_ANALYSES % "ok": "0 1 2 3x6000", _ANALYSES % "internal": "0 0 0 1x6000"}
    names = ("LensdErrorBudgetBurningFast", "LensdErrorBudgetBurningSlowly")
    expected = [
        {"eval_time": time, "alertname": name, "exp_alerts": []}
        for name in names
        for time in ("5m", "1h", "1d")
    ]
    run(rules, one_in_three, expected, every="5m")


def test_callers_held_to_their_quotas_are_no_alarm(rules: Path) -> None:
    held = {'lensd_rejected_total{job="lensd",instance="a",reason="QUOTA_EXCEEDED"}': "0+125x6000"}
    run(rules, held, [{"eval_time": "1h", "alertname": "LensdRejecting", "exp_alerts": []}])


def test_models_that_are_all_cold_are_no_alarm(rules: Path) -> None:
    cold = {_STATE % "resident": "0x6000", _STATE % "cold": "1x6000"}
    run(rules, cold, [{"eval_time": "1h", "alertname": "LensdNoReadyModel", "exp_alerts": []}])


def test_the_runbook_has_a_section_for_each_alert_under_the_anchor_it_names() -> None:
    text = files()["runbook.md"]
    sections = re.findall(r"^## (\S+)$", text, re.MULTILINE)
    assert sections == [alert.name for alert in ALERTS]
    for alert in ALERTS:
        # How GitHub, GitLab and most others make an anchor of a heading of one word.
        assert annotations(alert)["runbook_url"] == f"runbook.md#{alert.name.lower()}"
        assert len(alert.steps) >= 3, alert.name
        assert alert.meaning in text
        for step in alert.steps:
            assert step in text


def test_a_runbook_can_lie_elsewhere() -> None:
    rules = yaml.safe_load(files("https://wiki.example/lensd")["prometheus/lensd-rules.yml"])
    urls = [
        rule["annotations"]["runbook_url"]
        for group in rules["groups"]
        for rule in group["rules"]
        if "alert" in rule
    ]
    assert len(urls) == len(ALERTS)
    assert all(url.startswith("https://wiki.example/lensd#lensd") for url in urls)
