"""The suite every analyzer passes. Subclass it in a test module::

    class TestTokenCount(AnalyzerConformance):
        analyzer = TokenCount()

It needs the fixture ``lensd_engine``, which the distribution ``lensd-server`` brings.
"""

import json
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import pytest

from lensd_api.analyzer import Analyzer, find_flaw
from lensd_api.errors import InvalidParams
from lensd_api.results import Graph, ItemError, Record, Result, Table, Tensor
from lensd_api.testing.compare import BATCH_TOLERANCE, differences
from lensd_api.testing.engine import Engine, Job

#: A value no simply typed parameter accepts.
_WRONG = {"conformance": ["wrong", "type"]}


class AnalyzerConformance:
    """Set ``analyzer``; the rest has defaults."""

    analyzer: ClassVar[Analyzer]
    #: Parameters to try on the tiny models; the analyzer's examples by default.
    requests: ClassVar[tuple[Mapping[str, Any], ...] | None] = None
    #: Share of the largest magnitude by which a batched run may differ from one alone.
    tolerance: ClassVar[float] = BATCH_TOLERANCE

    def jobs(self, engine: Engine) -> list[Job]:
        """Every request on every model that satisfies its requirements."""
        wanted = self.requests
        if wanted is None:
            wanted = tuple(example.params for example in self.analyzer.examples)
        jobs: list[Job] = []
        for values in wanted:
            needs = self.analyzer.requirements(self.analyzer.Params.parse(values))
            fitting = [m for m in engine.models if needs.units <= engine.card(m).anatomy.units]
            jobs += [Job(values, model) for model in (fitting if needs.model else [""])]
        return jobs

    def test_its_shape_is_accepted(self) -> None:
        flaw = find_flaw(self.analyzer)
        assert flaw is None, flaw

    def test_it_says_what_it_does(self) -> None:
        assert (type(self.analyzer).__doc__ or "").strip(), "the class docstring is what callers see"

    def test_its_schema_is_json_and_closed(self) -> None:
        schema = self.analyzer.Params.model_json_schema()
        assert json.loads(json.dumps(schema)) == schema
        assert schema.get("additionalProperties") is False, "Params must subclass BaseParams"

    def test_an_unknown_parameter_is_a_field_violation(self) -> None:
        with pytest.raises(InvalidParams) as refused:
            self.analyzer.Params.parse({"no_such_parameter": 1})
        assert "no_such_parameter" in [v.field for v in refused.value.violations]

    def test_a_wrong_type_is_a_field_violation(self) -> None:
        properties = self.analyzer.Params.model_json_schema().get("properties", {})
        for name, schema in cast("dict[str, dict[str, Any]]", properties).items():
            if schema.get("type") not in ("string", "integer", "number", "boolean", "array"):
                continue
            with pytest.raises(InvalidParams) as refused:
                self.analyzer.Params.parse({name: _WRONG})
            fields = [v.field for v in refused.value.violations]
            assert any(field.startswith(name) for field in fields), f"{name}: {fields}"

    def test_its_examples_are_sound(self) -> None:
        seen: set[str] = set()
        for example in self.analyzer.examples:
            assert example.name not in seen, f"two examples named {example.name}"
            assert seen.issuperset(example.after), f"{example.name} comes before {example.after}"
            self.analyzer.Params.parse(json.loads(json.dumps(dict(example.params))))
            seen.add(example.name)
        assert seen, "give at least one example: callers, the demo and this suite run it"

    def test_it_runs(self, lensd_engine: Engine) -> None:
        jobs = self.jobs(lensd_engine)
        assert jobs, f"no model of {list(lensd_engine.models)} satisfies its requirements"
        for job in jobs:
            outcome = lensd_engine.run(self.analyzer, job)
            assert outcome.error is None, f"{job}: {outcome.error}"
            assert outcome.results, f"{job}: no result"

    def test_its_estimate_covers_what_runs(self, lensd_engine: Engine) -> None:
        for job in self.jobs(lensd_engine):
            if not job.model:
                continue
            params = self.analyzer.Params.parse(job.params)
            cost = self.analyzer.estimate(params, lensd_engine.card(job.model))
            ran = lensd_engine.run(self.analyzer, job).tokens
            assert cost.tokens >= ran, f"{job}: {ran} tokens ran, {cost.tokens} were estimated"

    def test_results_are_as_declared(self, lensd_engine: Engine) -> None:
        declared = {spec.name: spec.kind for spec in self.analyzer.results}
        if not declared:
            pytest.skip("declares no results")
        for job in self.jobs(lensd_engine):
            for result in lensd_engine.run(self.analyzer, job).results:
                if not isinstance(result, ItemError):
                    assert declared.get(result.name) == _kind(result), f"{result.name} is a {_kind(result)}"

    def test_batched_equals_alone(self, lensd_engine: Engine) -> None:
        jobs = self.jobs(lensd_engine) * 3
        alone = [lensd_engine.run(self.analyzer, job) for job in jobs]
        together = lensd_engine.run_together(self.analyzer, jobs)
        for job, one, other in zip(jobs, alone, together, strict=True):
            assert other.error is None, f"{job}: {other.error}"
            assert not (found := differences(one.results, other.results, self.tolerance)), f"{job}: {found}"

    def test_running_leaves_the_model_untouched(self, lensd_engine: Engine) -> None:
        for job in self.jobs(lensd_engine):
            residue = lensd_engine.run_and_cancel(self.analyzer, job, after_results=10**9)
            assert not residue.model_changed, f"{job}: the weights are read-only, for `reduce` too"
            assert residue.hooks == 0, f"{job}: {residue}"

    def test_cancelling_leaves_nothing_behind(self, lensd_engine: Engine) -> None:
        for job in self.jobs(lensd_engine):
            for after_results in (0, 1):
                residue = lensd_engine.run_and_cancel(self.analyzer, job, after_results=after_results)
                assert residue.hooks == 0, f"{job}: {residue}"
                assert residue.leases == 0, f"{job}: {residue}"
                assert residue.queued_rows == 0, f"{job}: {residue}"
                assert residue.running == 0, f"{job}: {residue}"
                assert not residue.model_changed, f"{job}: {residue}"


def _kind(result: Result) -> str:
    match result:
        case Table():
            return "table"
        case Tensor():
            return "tensor"
        case Graph():
            return "graph"
        case Record():
            return "record"
        case ItemError():
            return "error"
        case _:
            return "text"
