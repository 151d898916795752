"""Draws the dashboards from a real Prometheus, as they look in Grafana: `python -m tests.monitoring.picture`.

Starts a daemon and a Prometheus, has callers work and misbehave for some minutes, and writes one
picture a dashboard into server/deploy/pictures.
"""

import argparse
import io
import math
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.dates as dates
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from lensd_server.telemetry.monitoring.files import DASHBOARDS
from lensd_server.telemetry.monitoring.grafana import COLUMNS, Dashboard, Panel, Query, Section, laid_out
from tests.monitoring import scenario
from tests.monitoring.expressions import filled_in
from tests.monitoring.prometheus import INTERVAL_S, Prometheus, Series, running_prometheus

PICTURES = Path(__file__).parents[2] / "server" / "deploy" / "pictures"
WINDOW = "10s"
_COLUMN_IN, _ROW_IN = 0.56, 0.29

_PAGE, _CARD, _EDGE, _INK, _QUIET, _GRID = "#f4f5f7", "#ffffff", "#dfe2e7", "#24292e", "#6b7280", "#eceef1"
_LINES = (
    "#3871dc",
    "#e07b39",
    "#56a64b",
    "#b877d9",
    "#d9a514",
    "#1f9e9e",
    "#e02f44",
    "#8f6a4d",
    "#7a7f87",
    "#4b2ca0",
)
_NAMED = {"green": "#3f8f3a", "orange": "#d9741a", "red": "#d12f3f", "blue": "#2f64c8", "text": "#9aa1ab"}


def draw(dashboard: Dashboard, prometheus: Prometheus, start: float, end: float, path: Path) -> None:
    """Writes a picture of ``dashboard`` over the time from ``start`` to ``end``."""
    places = list(laid_out(dashboard))
    rows = max(place.y + place.height for _, place in places)
    width, height = COLUMNS * _COLUMN_IN, rows * _ROW_IN + 0.62
    figure = plt.figure(figsize=(width, height), facecolor=_PAGE)
    figure.text(0.012, 1 - 0.22 / height, dashboard.title, size=13, weight="bold", color=_INK, va="center")
    figure.text(0.012, 1 - 0.45 / height, dashboard.about, size=8.5, color=_QUIET, va="center")

    def box(x: float, y: float, w: float, h: float) -> tuple[float, float, float, float]:
        """In shares of the figure, from below, of a place in columns and rows from above."""
        top = height - 0.62 - y * _ROW_IN
        return x / COLUMNS, (top - h * _ROW_IN) / height, w / COLUMNS, h * _ROW_IN / height

    for thing, place in places:
        left, bottom, w, h = box(place.x, place.y, place.width, place.height)
        if isinstance(thing, Section):
            figure.text(
                left + 0.012, bottom + h / 2, thing.title, size=9.5, weight="bold", color=_INK, va="center"
            )
            continue
        _card(figure, left, bottom, w, h, thing.title, height)
        answers = [
            (query, prometheus.over(filled_in(query.expr, WINDOW), start, end)) for query in thing.queries
        ]
        _draw(figure, thing, answers, (left, bottom, w, h), (start, end), (width, height))
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=82, facecolor=_PAGE)
    plt.close(figure)
    # Flat colours: a palette is a third of the size and looks the same.
    Image.open(drawn).convert("RGB").quantize(
        256, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE
    ).save(path, optimize=True)


def _card(figure: Figure, left: float, bottom: float, w: float, h: float, title: str, height: float) -> None:
    gap_x, gap_y = 0.0025, 0.035 / height
    figure.patches.append(
        Rectangle(
            (left + gap_x, bottom + gap_y),
            w - 2 * gap_x,
            h - 2 * gap_y,
            transform=figure.transFigure,
            facecolor=_CARD,
            edgecolor=_EDGE,
            linewidth=0.8,
            zorder=-1,
        )
    )
    figure.text(left + 0.008, bottom + h - 0.16 / height, title, size=8, color=_INK, va="center")


def _draw(
    figure: Figure,
    panel: Panel,
    answers: Sequence[tuple[Query, list[Series]]],
    place: tuple[float, float, float, float],
    span: tuple[float, float],
    size: tuple[float, float],
) -> None:
    left, bottom, w, h = place
    width, height = size
    match panel.kind:
        case "stat":
            axes = figure.add_axes((left + 0.004, bottom + 0.06 / height, w - 0.008, h - 0.36 / height))
            _stat(axes, panel, answers[0][1], span)
        case "table":
            axes = figure.add_axes((left + 0.008, bottom + 0.08 / height, w - 0.016, h - 0.4 / height))
            _table(axes, answers[0][1], span[1])
        case _:
            under = 0.22 if panel.kind == "heatmap" else 0.22 + 0.14 * _legend_rows(panel, answers, w * width)
            axes = figure.add_axes(
                (
                    left + 0.52 / width,
                    bottom + (0.1 + under) / height,
                    w - 0.68 / width,
                    h - (0.44 + under) / height,
                )
            )
            drawn = {"heatmap": _heatmap, "state-timeline": _states}.get(panel.kind, _lines)
            drawn(axes, panel, answers, span)
            _dress(axes, span)


def _named(answers: Sequence[tuple[Query, list[Series]]]) -> list[tuple[str, Series]]:
    found: list[tuple[str, Series]] = []
    for query, series in answers:
        for one in series:
            name = query.legend or "value"
            for label, value in one.labels.items():
                name = name.replace(f"{{{{{label}}}}}", value)
            found.append((name, one))
    return sorted(found, key=lambda pair: pair[0]) if len(answers) == 1 else found


def _legend_columns(panel: Panel, answers: Sequence[tuple[Query, list[Series]]], inches: float) -> int:
    longest = max((len(name) for name, _ in _named(answers)), default=1)
    return max(1, int((inches - 0.3) / (0.27 + 0.066 * longest)))


def _legend_rows(panel: Panel, answers: Sequence[tuple[Query, list[Series]]], inches: float) -> int:
    if panel.kind == "state-timeline":
        return 0
    return min(3, math.ceil(len(_named(answers)) / _legend_columns(panel, answers, inches)))


def _lines(
    axes: Axes, panel: Panel, answers: Sequence[tuple[Query, list[Series]]], span: tuple[float, float]
) -> None:
    named = _named(answers)
    grid = sorted({at for _, series in named for at in series.times})
    columns = [datetime.fromtimestamp(at) for at in grid]
    base = [0.0] * len(grid)
    for number, (name, series) in enumerate(named):
        known = dict(zip(series.times, series.values, strict=True))
        colour = _LINES[number % len(_LINES)]
        values = [known.get(at, math.nan) for at in grid]
        if panel.stacked:
            top = [b + (0 if v != v else v) for b, v in zip(base, values, strict=True)]
            axes.fill_between(columns, base, top, color=colour, alpha=0.45, linewidth=0)
            # A line for what is not there would hide the one below.
            axes.plot(
                columns if top != base else [],
                top if top != base else [],
                color=colour,
                linewidth=0.9,
                label=name,
            )
            base = top
        else:
            axes.plot(columns, values, color=colour, linewidth=1.1, label=name)
    if panel.least is not None:
        axes.set_ylim(bottom=panel.least)
    low, high = axes.get_ylim()
    axes.set_ylim(low, max(high, low + 1e-9) * (1 if panel.stacked else 1.05))
    axes.yaxis.set_major_locator(mpl.ticker.MaxNLocator(4))
    axes.yaxis.set_major_formatter(lambda value, _: _text(value, panel.unit))
    if named:
        figure = axes.figure
        inches = axes.get_position().width * figure.get_size_inches()[0] + 0.5
        axes.legend(
            loc="upper left",
            bbox_to_anchor=(-0.06, -0.09 * 1.2 / (axes.get_position().height * figure.get_size_inches()[1])),
            bbox_transform=axes.transAxes,
            ncols=min(len(named), _legend_columns(panel, answers, inches)),
            fontsize=6.6,
            frameon=False,
            handlelength=1.0,
            handletextpad=0.5,
            columnspacing=1.1,
            labelspacing=0.25,
            labelcolor=_QUIET,
            borderaxespad=0.6,
        )


def _states(
    axes: Axes, panel: Panel, answers: Sequence[tuple[Query, list[Series]]], span: tuple[float, float]
) -> None:
    named = _named(answers)
    meaning = {number: (text, _NAMED[colour]) for number, text, colour in panel.meanings}
    for row, (_, series) in enumerate(reversed(named)):
        begin = 0
        for index in range(1, len(series.values) + 1):
            if index < len(series.values) and series.values[index] == series.values[begin]:
                continue
            last = min(index, len(series.values) - 1)
            start, end = (datetime.fromtimestamp(series.times[i]) for i in (begin, last))
            text, colour = meaning[int(series.values[begin])]
            axes.barh(row, end - start, left=start, height=0.72, color=colour, alpha=0.8, linewidth=0)
            if (end - start).total_seconds() > 0.09 * (span[1] - span[0]):
                axes.text(
                    start + (end - start) * 0.02,
                    row,
                    text,
                    color="white",
                    size=7.5,
                    va="center",
                    weight="bold",
                )
            begin = index
    axes.set_yticks(range(len(named)), [name.split(" ")[0] for name, _ in reversed(named)])
    axes.set_ylim(-0.6, len(named) - 0.4)


def _heatmap(
    axes: Axes, panel: Panel, answers: Sequence[tuple[Query, list[Series]]], span: tuple[float, float]
) -> None:
    buckets = sorted(answers[0][1], key=lambda series: float(series.labels["le"].replace("+Inf", "inf")))
    times = sorted({at for series in buckets for at in series.times})
    rows: list[list[float]] = []
    below = dict.fromkeys(times, 0.0)
    for series in buckets:
        known = dict(zip(series.times, series.values, strict=True))
        rows.append([max(0.0, known.get(at, 0.0) - below[at]) for at in times])
        below = {at: known.get(at, below[at]) for at in times}
    used = [index for index, row in enumerate(rows) if max(row, default=0) > 0]
    rows = rows[: (used[-1] if used else 0) + 1]
    colours = LinearSegmentedColormap.from_list("counts", [_CARD, "#9cc3f5", "#1f5fc4", "#0b2f73"])
    columns = [datetime.fromtimestamp(at) for at in times]
    axes.pcolormesh(
        columns,
        range(len(rows)),
        [[math.sqrt(value) for value in row] for row in rows],
        cmap=colours,
        shading="nearest",
        edgecolors=_CARD,
        linewidth=0.1,
        rasterized=True,
    )
    labels = [series.labels["le"].removesuffix(".0") for series in buckets][: len(rows)]
    axes.set_yticks(range(len(rows)), labels)


def _stat(axes: Axes, panel: Panel, found: list[Series], span: tuple[float, float]) -> None:
    axes.set_axis_off()
    if not found:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", color=_QUIET, size=12)
        return
    series = found[0]
    values = [value for value in series.values if value == value]
    value = values[-1] if values else math.nan
    colour = next(c for limit, c in reversed(panel.thresholds) if limit is None or value >= limit)
    top = max([v for v in series.values if v == v] or [1]) or 1
    axes.fill_between(
        series.times, 0, [v / top for v in series.values], color=_NAMED[colour], alpha=0.16, linewidth=0
    )
    axes.plot(series.times, [v / top for v in series.values], color=_NAMED[colour], alpha=0.5, linewidth=0.8)
    axes.set_xlim(*span)
    axes.set_ylim(0, 2.6)
    shown = _text(value, panel.unit)
    size = 19 if len(shown) < 8 else 14
    axes.text(
        0.5,
        0.62,
        shown,
        ha="center",
        va="center",
        color=_NAMED[colour],
        size=size,
        weight="bold",
        transform=axes.transAxes,
    )


def _table(axes: Axes, found: list[Series], end: float) -> None:
    """What is there at the end."""
    axes.set_axis_off()
    found = [series for series in found if series.times[-1] > end - 2 * INTERVAL_S]
    hidden = {"job", "__name__"}
    columns = sorted({label for series in found for label in series.labels if label not in hidden})
    rows = sorted([series.labels.get(column, "") for column in columns] for series in found)
    shown = rows[:9]
    widths = [max(len(column), *(len(row[n]) for row in shown)) + 2 for n, column in enumerate(columns)]
    lefts = [sum(widths[:n]) / sum(widths) for n in range(len(columns))]
    height = 1 / max(9.5, len(shown) + 1)
    for n, column in enumerate(columns):
        axes.text(lefts[n], 1 - height * 0.5, column, size=7, weight="bold", color=_INK, va="center")
        for line, row in enumerate(shown, start=1):
            bad = row[n] in ("quarantined", "broken")
            colour = _NAMED["red"] if bad else _INK
            axes.text(lefts[n], 1 - height * (line + 0.5), row[n], size=7, color=colour, va="center")
    for line in range(1, len(shown) + 2):
        axes.axhline(1 - height * line, color=_GRID, linewidth=0.7)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)


def _dress(axes: Axes, span: tuple[float, float]) -> None:
    axes.set_xlim(*(datetime.fromtimestamp(at) for at in span))
    start, length = span[0], span[1] - span[0]
    axes.set_xticks([datetime.fromtimestamp(start + length * share) for share in (0.1, 0.37, 0.63, 0.9)])
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M:%S"))
    axes.tick_params(labelsize=6.6, colors=_QUIET, length=0, pad=2)
    axes.grid(visible=True, color=_GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_facecolor(_CARD)
    for spine in axes.spines.values():
        spine.set_visible(False)


#: Below which value, by what it is divided, and what that is called.
_SCALES = {
    "s": (
        (1e-3, 1e-6, "µs"),
        (1, 1e-3, "ms"),
        (120, 1, "s"),
        (7200, 60, "min"),
        (172800, 3600, "h"),
        (math.inf, 86400, "d"),
    ),
    "bytes": ((2**10, 1, "B"), (2**20, 2**10, "KiB"), (2**30, 2**20, "MiB"), (math.inf, 2**30, "GiB")),
    "percentunit": ((math.inf, 0.01, "%"),),
    "reqps": ((math.inf, 1, "req/s"),),
    "cps": ((math.inf, 1, "c/s"),),
    "short": ((1000, 1, ""), (math.inf, 1000, "K")),
}


def _text(value: float, unit: str) -> str:
    """As Grafana writes a value of ``unit``."""
    if value != value:
        return "–"
    _, factor, name = next(scale for scale in _SCALES[unit] if abs(value) < scale[0])
    return f"{value / factor:.3g} {name}".rstrip() if value else "0"


def main() -> None:
    """Runs the daemon, its callers and Prometheus, and draws what was to be seen."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=100.0, help="how long callers work")
    parser.add_argument("--out", type=Path, default=PICTURES)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with (
            scenario.watched_daemon(root) as target,
            running_prometheus(root / "monitoring", target.daemon.metrics) as prometheus,
        ):
            prometheus.until("a scrape", lambda: bool(prometheus.query("lensd_build_info")))
            start = time.time()
            scenario.serve_callers(target, options.seconds * 0.25, callers=3)
            scenario.serve_callers(target, options.seconds * 0.5, callers=8)
            scenario.misbehave(target)
            scenario.break_things(target)
            scenario.serve_dla(target, options.seconds * 0.25)
            prometheus.until("the alerts", lambda: len(prometheus.firing()) >= 2)
            end = time.time()
            for dashboard in DASHBOARDS:
                draw(dashboard, prometheus, start, end, options.out / f"{dashboard.uid}.png")


if __name__ == "__main__":
    main()
