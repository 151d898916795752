"""What PromQL expressions ask for: metrics and labels."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import promql_parser

from lensd_server.telemetry.monitoring.alerts import GROUPS
from lensd_server.telemetry.monitoring.files import DASHBOARDS
from lensd_server.telemetry.monitoring.rules import Recording

#: Prometheus' own, which no daemon shows.
OF_PROMETHEUS = {"up", "ALERTS"}
#: Labels that a scrape adds.
OF_A_SCRAPE = {"job", "instance"}


@dataclass(frozen=True, slots=True)
class Selector:
    """Series that an expression reads: of ``name``, with labels that are equal to or match a text."""

    name: str
    #: Label, whether it must match rather than must not, and the regular expression.
    matchers: tuple[tuple[str, bool, str], ...] = ()


@dataclass(slots=True)
class Asked:
    """What an expression asks for. ``labels`` are those it groups by or matches on."""

    selectors: list[Selector] = field(default_factory=list[Selector])
    labels: set[str] = field(default_factory=set[str])


def filled_in(expr: str, window: str = "5m") -> str:
    """``expr`` with values in place of Grafana's variables: everything is selected."""
    for variable, value in (
        ("$__rate_interval", window),
        ('"$job"', '".+"'),
        ('"$instance"', '".+"'),
    ):
        expr = expr.replace(variable, value)
    assert "$" not in expr, f"a variable without a value: {expr}"
    return expr


def asked(expr: str) -> Asked:
    """Parses ``expr``, which must be valid, and tells what it asks for."""
    found = Asked()

    def visit(node: object) -> bool:
        match node:
            case promql_parser.VectorSelector():
                assert node.name, f"a selector without a metric: {expr}"
                matchers = tuple(
                    (
                        m.name,
                        m.op in (promql_parser.MatchOp.Equal, promql_parser.MatchOp.Re),
                        m.value
                        if m.op in (promql_parser.MatchOp.Re, promql_parser.MatchOp.NotRe)
                        else _exactly(m.value),
                    )
                    for m in node.matchers.matchers
                )
                found.selectors.append(Selector(node.name, matchers))
            case promql_parser.AggregateExpr() if node.modifier is not None:
                found.labels |= set(node.modifier.labels)
            case promql_parser.BinaryExpr() if (
                node.modifier is not None and node.modifier.matching is not None
            ):
                found.labels |= set(node.modifier.matching.labels)
            case _:
                pass
        return True

    promql_parser.walk(promql_parser.parse(filled_in(expr)), visit)
    return found


def of_dashboards() -> Iterator[tuple[str, str, bool]]:
    """Where each expression is, the expression, and whether it may have nothing to say."""
    for dashboard in DASHBOARDS:
        for panel in dashboard.panels:
            for query in panel.queries:
                yield f"{dashboard.uid}: {panel.title}", query.expr, panel.quiet


def of_rules() -> Iterator[tuple[str, str]]:
    """Name and expression of every rule."""
    for group in GROUPS:
        for rule in group.rules:
            yield (rule.record if isinstance(rule, Recording) else rule.name), rule.expr


def recorded() -> set[str]:
    """Names that rules record."""
    return {rule.record for group in GROUPS for rule in group.rules if isinstance(rule, Recording)}


def _exactly(text: str) -> str:
    import re

    return re.escape(text)
