"""Dashboards are what Grafana can import, and lie in the repository as they are made."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard as TheirDashboard

from lensd_server.telemetry.monitoring.files import DASHBOARDS, files
from lensd_server.telemetry.monitoring.grafana import COLUMNS, Dashboard, laid_out, to_json

DEPLOY = Path(__file__).parents[2] / "server" / "deploy"


def test_what_is_committed_is_what_lensd_dashboards_writes() -> None:
    stale = [
        name
        for name, text in files().items()
        if not (DEPLOY / name).is_file() or (DEPLOY / name).read_text() != text
    ]
    assert stale == [], "run: lensd dashboards --out server/deploy"
    made = {name for name in files() if name.endswith(".json")}
    assert {str(path.relative_to(DEPLOY)) for path in (DEPLOY / "grafana").glob("*.json")} == made


def _paths(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    match value:
        case dict():
            for key, inner in value.items():
                yield from _paths(inner, f"{path}.{key}")
        case list():
            for number, inner in enumerate(value):
                yield from _paths(inner, f"{path}[{number}]")
        case _:
            yield path, value


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.uid)
def test_grafanas_own_model_of_a_dashboard_knows_every_field(dashboard: Dashboard) -> None:
    register_default_plugins()
    ours = to_json(dashboard)
    theirs = json.loads(JSONEncoder(sort_keys=True).encode(TheirDashboard.from_json(ours)))
    understood = dict(_paths(theirs))
    lost = {path: value for path, value in _paths(ours) if understood.get(path, "absent") != value}
    assert lost == {}


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.uid)
def test_panels_fill_the_page_without_overlapping(dashboard: Dashboard) -> None:
    taken: set[tuple[int, int]] = set()
    for _, place in laid_out(dashboard):
        assert place.x + place.width <= COLUMNS
        cells = {
            (x, y)
            for x in range(place.x, place.x + place.width)
            for y in range(place.y, place.y + place.height)
        }
        assert not cells & taken
        taken |= cells
    rows = max(y for _, y in taken) + 1
    assert len(taken) == rows * COLUMNS, "a gap on the page"


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda d: d.uid)
def test_panels_say_what_they_show(dashboard: Dashboard) -> None:
    titles = [panel.title for panel in dashboard.panels]
    assert len(titles) == len(set(titles))
    for panel in dashboard.panels:
        assert panel.about.endswith("."), panel.title
        several = len(panel.queries) > 1
        assert not several or all(query.legend for query in panel.queries), panel.title
