"""Dashboards as values, and the JSON that Grafana imports.

The classic JSON model (schema version 39), which Grafana 10 and later read. Panels flow from left
to right in rows of :data:`COLUMNS`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

COLUMNS = 24
_SCHEMA = 39
_SOURCE = {"type": "prometheus", "uid": "${datasource}"}

#: Colours Grafana knows by name.
GREEN, ORANGE, RED, BLUE, GREY = "green", "orange", "red", "blue", "text"


@dataclass(frozen=True, slots=True)
class Query:
    """One expression of a panel. ``legend`` may hold ``{{label}}``."""

    expr: str
    legend: str = ""
    #: Asks for exemplars as well: a point of a histogram that leads to a trace.
    exemplars: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture. ``about`` says what it shows and what is worth a worry."""

    title: str
    about: str
    queries: tuple[Query, ...]
    kind: Literal["timeseries", "stat", "heatmap", "state-timeline", "table"] = "timeseries"
    unit: str = "short"
    width: int = 8
    height: int = 8
    stacked: bool = False
    #: Least and most of the value axis, where they are known.
    least: float | None = 0
    most: float | None = None
    #: From which value on which colour; the first counts from below.
    thresholds: tuple[tuple[float | None, str], ...] = ((None, GREEN),)
    #: What values mean, and in which colour.
    meanings: tuple[tuple[int, str, str], ...] = ()
    #: Nothing to see as long as nothing goes wrong.
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """Panels under one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A page of panels."""

    uid: str
    title: str
    about: str
    sections: tuple[Section, ...]

    @property
    def panels(self) -> tuple[Panel, ...]:
        """All of them, in reading order."""
        return tuple(panel for section in self.sections for panel in section.panels)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a panel is on its page, in columns and rows of the grid."""

    x: int
    y: int
    width: int
    height: int


def laid_out(dashboard: Dashboard) -> Iterator[tuple[Section | Panel, Place]]:
    """Headings and panels with their places, from top to bottom."""
    y = 0
    for section in dashboard.sections:
        yield section, Place(0, y, COLUMNS, 1)
        y += 1
        x = tallest = 0
        for panel in section.panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            yield panel, Place(x, y, panel.width, panel.height)
            x += panel.width
            tallest = max(tallest, panel.height)
        y += tallest


def to_json(dashboard: Dashboard) -> dict[str, Any]:
    """What Grafana imports."""
    panels: list[dict[str, Any]] = []
    for number, (thing, place) in enumerate(laid_out(dashboard), start=1):
        grid = {"x": place.x, "y": place.y, "w": place.width, "h": place.height}
        if isinstance(thing, Section):
            shown = {"type": "row", "title": thing.title, "collapsed": False, "panels": []}
        else:
            shown = _panel(thing)
        panels.append({"id": number, "gridPos": grid, **shown})
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.about,
        "tags": ["lensd"],
        "schemaVersion": _SCHEMA,
        "editable": True,
        "graphTooltip": 1,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [
            {
                "type": "dashboards",
                "title": "lensd",
                "tags": ["lensd"],
                "asDropdown": False,
                "includeVars": True,
                "keepTime": True,
                "targetBlank": False,
                "icon": "external link",
                "tooltip": "",
                "url": "",
            }
        ],
        "templating": {
            "list": [_source_variable(), _variable("job"), _variable("instance", '{job=~"$job"}')]
        },
        "panels": panels,
    }


def _source_variable() -> dict[str, Any]:
    return {"type": "datasource", "name": "datasource", "label": "Data source", "query": "prometheus"}


def _variable(label: str, where: str = "") -> dict[str, Any]:
    """A choice of several values of ``label``, all of them at first."""
    return {
        "type": "query",
        "name": label,
        "label": label.capitalize(),
        "datasource": _SOURCE,
        "query": f"label_values(lensd_build_info{where}, {label})",
        "refresh": 2,
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all", "selected": True},
    }


def _panel(panel: Panel) -> dict[str, Any]:
    defaults: dict[str, Any] = {
        "unit": panel.unit,
        "thresholds": {
            "mode": "absolute",
            "steps": [{"value": value, "color": colour} for value, colour in panel.thresholds],
        },
    }
    if panel.least is not None:
        defaults["min"] = panel.least
    if panel.most is not None:
        defaults["max"] = panel.most
    if panel.meanings:
        options = {str(n): {"text": text, "color": colour} for n, text, colour in panel.meanings}
        defaults["mappings"] = [{"type": "value", "options": options}]
    options, custom = _look(panel)
    if custom:
        defaults["custom"] = custom
    shown: dict[str, Any] = {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _SOURCE,
        "targets": [_target(panel, query, chr(ord("A") + n)) for n, query in enumerate(panel.queries)],
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
    }
    if panel.kind == "table":
        hidden = {"Time": True, "Value": True, "__name__": True, "job": True}
        shown["transformations"] = [{"id": "organize", "options": {"excludeByName": hidden}}]
    return shown


def _target(panel: Panel, query: Query, letter: str) -> dict[str, Any]:
    form = {"table": "table", "heatmap": "heatmap"}.get(panel.kind, "time_series")
    target: dict[str, Any] = {
        "refId": letter,
        "datasource": _SOURCE,
        "expr": query.expr,
        "legendFormat": "{{le}}" if panel.kind == "heatmap" else query.legend,
        "format": form,
        "instant": panel.kind == "table",
        "range": panel.kind != "table",
    }
    if query.exemplars:
        target["exemplar"] = True
    return target


def _look(panel: Panel) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Options of the panel, and of its fields."""
    legend = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    match panel.kind:
        case "timeseries":
            drawn = {
                "drawStyle": "line",
                "lineWidth": 1,
                "fillOpacity": 40 if panel.stacked else 8,
                "showPoints": "never",
                "spanNulls": False,
                "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            }
            return {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}, drawn
        case "stat":
            reduced = {"calcs": ["lastNotNull"], "fields": "", "values": False}
            return {
                "reduceOptions": reduced,
                "colorMode": "value",
                "graphMode": "area",
                "justifyMode": "auto",
                "textMode": "auto",
                "orientation": "auto",
            }, {}
        case "heatmap":
            return {
                "calculate": False,
                "cellGap": 1,
                "color": {
                    "mode": "scheme",
                    "scheme": "Blues",
                    "steps": 64,
                    "exponent": 0.5,
                    "reverse": False,
                },
                "yAxis": {"unit": panel.unit, "axisPlacement": "left"},
                "legend": {"show": True},
                "tooltip": {"show": True, "yHistogram": False},
            }, {}
        case "state-timeline":
            return {
                "mergeValues": True,
                "showValue": "auto",
                "alignValue": "left",
                "rowHeight": 0.8,
                "legend": {**legend, "showLegend": False},
                "tooltip": {"mode": "single", "sort": "none"},
            }, {"fillOpacity": 75, "lineWidth": 0}
        case "table":
            return {"showHeader": True, "cellHeight": "sm"}, {"align": "auto"}
