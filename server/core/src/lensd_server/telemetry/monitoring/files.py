"""The files an operator takes away, by their paths: what ``lensd dashboards`` writes."""

import json
from collections.abc import Sequence
from pathlib import Path

from lensd_server.telemetry.monitoring.alerts import ALERTS, GROUPS
from lensd_server.telemetry.monitoring.batching import BATCHING
from lensd_server.telemetry.monitoring.grafana import Dashboard, to_json
from lensd_server.telemetry.monitoring.models import MODELS
from lensd_server.telemetry.monitoring.overview import OVERVIEW
from lensd_server.telemetry.monitoring.rules import RUNBOOK, Alert, dump, to_yaml

DASHBOARDS: tuple[Dashboard, ...] = (OVERVIEW, MODELS, BATCHING)

_MADE = "# Made by `lensd dashboards`; change it there, or what you change is lost with the next version.\n"


def files(runbook: str = RUNBOOK) -> dict[str, str]:
    """Paths and contents. ``runbook`` is where alerts say that their runbook can be read."""
    dashboards = {
        f"grafana/{dashboard.uid}.json": json.dumps(to_json(dashboard), indent=2) + "\n"
        for dashboard in DASHBOARDS
    }
    return {
        **dashboards,
        "grafana/provisioning/dashboards/lensd.yaml": _MADE + dump(_PROVIDER),
        "grafana/provisioning/datasources/lensd.yaml": _MADE + dump(_SOURCE),
        "prometheus/lensd-rules.yml": _MADE + to_yaml(GROUPS, runbook),
        "prometheus/prometheus.yml": _SCRAPE,
        "runbook.md": _runbook(ALERTS),
    }


def write(folder: Path, runbook: str = RUNBOOK) -> list[Path]:
    """Writes them all under ``folder``, over those of an earlier version. Raises OSError."""
    written: list[Path] = []
    for name, text in files(runbook).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written


_PROVIDER = {
    "apiVersion": 1,
    "providers": [
        {
            "name": "lensd",
            "folder": "lensd",
            "type": "file",
            "options": {"path": "/var/lib/grafana/dashboards/lensd"},
        }
    ],
}

_SOURCE = {
    "apiVersion": 1,
    "datasources": [
        {
            "name": "Prometheus",
            "type": "prometheus",
            "access": "proxy",
            "url": "http://localhost:9090",
            "isDefault": True,
            # Must be the scrape interval: `$__rate_interval` is made of it.
            "jsonData": {"timeInterval": "15s"},
        }
    ],
}

_SCRAPE = """\
# An example: what Prometheus needs to know of lensd. The job must be called lensd, since LensdDown
# asks for it by that name. Exemplars, which lead from a slow point to its trace, are kept only with
# --enable-feature=exemplar-storage.
global:
  scrape_interval: 15s
  evaluation_interval: 15s

rule_files:
  - lensd-rules.yml

scrape_configs:
  - job_name: lensd
    static_configs:
      - targets:
          - localhost:9464
"""


def _runbook(alerts: Sequence[Alert]) -> str:
    """A section for each alert, under the anchor that the alert's annotation names."""
    rows = "\n".join(f"| [{a.name}](#{a.anchor}) | {a.severity} | {_one_line(a.meaning)} |" for a in alerts)
    sections = "\n".join(_section(alert) for alert in alerts)
    return f"""\
# Runbook

What each alert of lensd means and what to do, in order. `page` wakes somebody; `ticket` can wait for the
morning. Made by `lensd dashboards` of the same definitions as the rules.

| alert | severity | meaning |
| --- | --- | --- |
{rows}

{sections}"""


def _section(alert: Alert) -> str:
    steps = "\n".join(f"{n}. {step}" for n, step in enumerate(alert.steps, start=1))
    held = "at once" if alert.lasting == "0m" else f"after {alert.lasting}"
    return f"""\
## {alert.name}

{alert.meaning}

{steps}

Fires ({alert.severity}) {held} of:

```promql
{alert.expr}
```
"""


def _one_line(text: str) -> str:
    """The first sentence, for a table."""
    return text.partition(". ")[0].rstrip(".") + "."
