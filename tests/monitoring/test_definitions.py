"""Every expression of a dashboard or a rule is valid and asks for what is defined."""

import pytest

from lensd_server.telemetry.definitions import DEFINITIONS
from tests.monitoring import expressions

SERIES = {series: definition for definition in DEFINITIONS for series in definition.series}
EXPRESSIONS = [
    *((where, expr) for where, expr, _ in expressions.of_dashboards()),
    *expressions.of_rules(),
]


@pytest.mark.parametrize(("where", "expr"), EXPRESSIONS)
def test_it_asks_for_metrics_and_labels_that_are_defined(where: str, expr: str) -> None:
    asked = expressions.asked(expr)
    known: set[str] = set(expressions.OF_A_SCRAPE)
    for selector in asked.selectors:
        if selector.name in expressions.OF_PROMETHEUS:
            continue
        if selector.name in expressions.recorded():
            known.add("job")
            continue
        definition = SERIES[selector.name]
        labels = {
            *definition.labels,
            *expressions.OF_A_SCRAPE,
            *(["le"] if definition.kind == "histogram" else []),
        }
        assert {label for label, _, _ in selector.matchers} <= labels, where
        known |= labels
    assert asked.labels <= known, where


@pytest.mark.parametrize(("where", "expr"), EXPRESSIONS)
def test_counters_are_asked_for_their_growth_and_gauges_are_not(where: str, expr: str) -> None:
    import promql_parser

    growing: list[str] = []
    plain: list[str] = []

    def visit(node: object) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            growing.append(str(node.vector_selector.name))
        elif isinstance(node, promql_parser.VectorSelector):
            plain.append(str(node.name))
        return True

    promql_parser.walk(promql_parser.parse(expressions.filled_in(expr)), visit)
    for name in growing:
        assert SERIES[name].kind != "gauge", f"{where}: rate of a gauge {name}"
        plain.remove(name)
    for name in plain:
        assert name not in SERIES or SERIES[name].kind == "gauge", f"{where}: a bare counter {name}"
