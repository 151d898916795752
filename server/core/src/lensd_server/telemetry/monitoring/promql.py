"""PromQL made of metric definitions, so that no expression can ask for what does not exist.

Grafana fills in ``$__rate_interval`` and the dashboards' variables.
"""

from collections.abc import Sequence

from lensd_server.telemetry.definitions import CounterDefinition, Definition, HistogramDefinition

#: The window of every rate on a dashboard: Grafana makes it at least four scrapes.
WINDOW = "$__rate_interval"
#: What every query of a dashboard is limited to.
SELECTED = 'job=~"$job",instance=~"$instance"'


def select(metric: Definition | str, *matchers: str, where: str = SELECTED) -> str:
    """The series of ``metric`` that are selected and match all ``matchers``."""
    name = metric if isinstance(metric, str) else metric.name
    inside = ",".join(part for part in (where, *matchers) if part)
    return f"{name}{{{inside}}}" if inside else name


def total(what: str, by: Sequence[str] = ()) -> str:
    """The sum of ``what``, over everything but ``by``."""
    return f"sum by ({', '.join(by)}) ({what})" if by else f"sum({what})"


def rate(metric: CounterDefinition, *matchers: str, by: Sequence[str] = (), window: str = WINDOW) -> str:
    """How much ``metric`` grows a second."""
    return total(f"rate({select(metric, *matchers)}[{window}])", by)


def quantile(
    q: float, metric: HistogramDefinition, *matchers: str, by: Sequence[str] = (), window: str = WINDOW
) -> str:
    """The value that a share ``q`` of the observations did not exceed, from the buckets."""
    buckets = select(f"{metric.name}_bucket", *matchers)
    return f"histogram_quantile({q}, {total(f'rate({buckets}[{window}])', ('le', *by))})"


def mean(metric: HistogramDefinition, *matchers: str, by: Sequence[str] = (), window: str = WINDOW) -> str:
    """The mean of the observations."""
    parts = (
        total(f"rate({select(f'{metric.name}_{part}', *matchers)}[{window}])", by)
        for part in ("sum", "count")
    )
    return " / ".join(parts)


def amount(metric: HistogramDefinition, *matchers: str, by: Sequence[str] = (), window: str = WINDOW) -> str:
    """How much of what ``metric`` observes there is a second: of seconds, 1 is one thing all the time."""
    return total(f"rate({select(f'{metric.name}_sum', *matchers)}[{window}])", by)


def spread(metric: HistogramDefinition, *matchers: str, window: str = WINDOW) -> str:
    """Observations by bucket, for a heat-map."""
    return total(f"increase({select(f'{metric.name}_bucket', *matchers)}[{window}])", ("le",))
