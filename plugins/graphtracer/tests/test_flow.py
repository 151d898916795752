"""Information flow: what is planned, that batches change nothing, and that a planted dependency is found."""

from typing import Any

import numpy as np
import pytest

from lensd_api import InvalidParams
from lensd_api.testing import Engine, Job
from lensd_graphtracer import GraphTracer, GraphTracerParams
from lensd_graphtracer.examples import PLANTED_CODE
from lensd_graphtracer.flow import best_span, plan_flow
from lensd_graphtracer.formats import read_trace
from plugins.graphtracer.tests.logs import plain

SMALL = {"use_model": True, "window_tokens": 64, "step_tokens": 16, "output_tokens": 16}


def planned(engine: Engine, trace: Any, **params: Any) -> Any:
    asked = GraphTracerParams.parse({"trace": trace, **SMALL, **params})
    read = read_trace(asked.trace)
    return plan_flow(read.task, read.content_steps, asked, engine.card(engine.models[0]))


def test_the_plan_counts_what_it_will_run_and_what_it_leaves_out(lensd_engine: Engine) -> None:
    log = plain(*[("A", f"word {i} " * 20) for i in range(8)])
    plan = planned(lensd_engine, log)
    context = lensd_engine.card(lensd_engine.models[0]).anatomy.context_length
    assert plan.cut_steps == 8
    assert plan.rows == sum(1 + len(t.context) for t in plan.targets)
    for target in plan.targets:
        used = sum(len(segment.tokens) for segment in target.context)
        assert used <= 64
        assert len(plan.preamble) + used + len(target.output) <= context
        assert target.left_out + len(target.context) == target.step


def test_too_few_rows_skip_early_steps_and_say_so(lensd_engine: Engine) -> None:
    log = plain(*[("A", f"short {i + 10}") for i in range(6)])
    plan = planned(lensd_engine, log, max_rows=8)
    assert plan.rows <= 8
    assert plan.skipped
    assert max(plan.skipped) < max(t.step for t in plan.targets)
    outcome = lensd_engine.run(
        GraphTracer(), Job({"trace": log, **SMALL, "max_rows": 8}, lensd_engine.models[0])
    )
    assert "FLOW_INCOMPLETE" in [reason for reason, _ in outcome.warnings]


def test_a_step_that_is_not_there_is_a_field_violation(lensd_engine: Engine) -> None:
    job = Job({"trace": PLANTED_CODE, **SMALL, "flow_steps": [99]}, lensd_engine.models[0])
    error = lensd_engine.run(GraphTracer(), job).error
    assert isinstance(error, InvalidParams)
    assert error.violations[0].field == "flow_steps"


def test_flows_are_the_difference_of_two_likelihoods_run_alone(lensd_engine: Engine) -> None:
    """An oracle of its own: the same rows, one at a time, from the analysis of each pair."""
    model = lensd_engine.models[0]
    values = {"trace": plain(("A", "alpha 1111"), ("B", "beta 2222"), ("C", "gamma 1111")), **SMALL}
    together = lensd_engine.run(GraphTracer(), Job(values, model))
    alone = lensd_engine.run(GraphTracer(), Job({**values, "flow_steps": [2]}, model))
    pick = {r.name: r for r in together.results}["flow"].columns  # type: ignore[union-attr]
    only = {r.name: r for r in alone.results}["flow"].columns  # type: ignore[union-attr]
    both = dict(zip(zip(pick["source"], pick["target"], strict=True), pick["total"], strict=True))
    assert len(both) == 3
    for source, total in zip(only["source"], only["total"], strict=True):
        assert abs(total - both[source, 2]) <= 1e-4 * max(1.0, abs(total))


def test_the_answers_known_are_checked_and_no_others(lensd_engine: Engine) -> None:
    log = plain(("A", "it is 12"), ("B", "so 12"), right_answer="13", final_answer="12")
    for use_answer, expected in ((False, {"given"}), (True, {"given", "right"})):
        job = Job({"trace": log, **SMALL, "use_answer": use_answer}, lensd_engine.models[0])
        outcome = lensd_engine.run(GraphTracer(), job)
        (table,) = [r for r in outcome.results if r.name == "counterfactual"]
        assert set(table.columns["answer"]) == expected  # type: ignore[union-attr]


def test_the_span_that_gains_most_is_found() -> None:
    assert best_span(np.array([-1.0, 0.5, 2.0, 3.0, -4.0, 1.0])) == (1, 4)
    assert best_span(np.array([-3.0, -1.0])) == (1, 2)


def test_structure_alone_needs_no_model() -> None:
    analyzer = GraphTracer()
    assert analyzer.requirements(None).model is False
    assert analyzer.requirements(GraphTracerParams.parse({"trace": PLANTED_CODE})).model is False
    assert (
        analyzer.requirements(GraphTracerParams.parse({"trace": PLANTED_CODE, "use_model": True})).model
        is True
    )


def test_the_estimate_counts_the_rows_tokens(lensd_engine: Engine) -> None:
    card = lensd_engine.card(lensd_engine.models[0])
    analyzer = GraphTracer()
    assert analyzer.estimate(GraphTracerParams.parse({"trace": PLANTED_CODE}), card).tokens == 0
    asked = GraphTracerParams.parse({"trace": PLANTED_CODE, **SMALL})
    read = read_trace(asked.trace)
    plan = plan_flow(read.task, read.content_steps, asked, card)
    exact = 0
    for target in plan.targets:
        whole = len(plan.preamble) + sum(len(s.tokens) for s in target.context) + len(target.output)
        exact += whole + sum(whole - len(s.tokens) for s in target.context)
    assert plan.tokens == exact
    assert analyzer.estimate(asked, card).tokens >= exact


@pytest.mark.parametrize("batch", [1, 32])
def test_batch_size_changes_nothing(
    lensd_engine: Engine, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    monkeypatch.setattr("lensd_graphtracer.flow.ROWS_AT_ONCE", batch)
    outcome = lensd_engine.run(GraphTracer(), Job({"trace": PLANTED_CODE, **SMALL}, lensd_engine.models[0]))
    (table,) = [r for r in outcome.results if r.name == "flow"]
    monkeypatch.undo()
    again = lensd_engine.run(GraphTracer(), Job({"trace": PLANTED_CODE, **SMALL}, lensd_engine.models[0]))
    (other,) = [r for r in again.results if r.name == "flow"]
    assert np.allclose(table.columns["value"], other.columns["value"], atol=1e-5)  # type: ignore[union-attr]
