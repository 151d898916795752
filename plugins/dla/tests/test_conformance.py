"""The suite every analyzer passes, on the real engine with tiny real models."""

import pytest

from lensd_api.testing import AnalyzerConformance, Engine, Job
from lensd_dla import Dla


class TestDla(AnalyzerConformance):
    analyzer = Dla()


def test_one_long_prompt_fails_alone(lensd_engine: Engine) -> None:
    model = lensd_engine.models[0]
    job = Job({"prompts": ["One, two, three", "word " * 500, "The capital of France is"]}, model)
    outcome = lensd_engine.run(Dla(), job)
    assert outcome.error is None
    by_item = {item: [r.name for r in outcome.results if r.item == item] for item in ("0", "1", "2")}
    assert by_item["0"] == by_item["2"] == ["contributions", "logits", "summary"]
    assert by_item["1"] == ["contributions"]


@pytest.mark.parametrize("unit", ["block", "component", "head", "neuron", "expert", "source"])
def test_every_unit_runs_on_the_real_engine(lensd_engine: Engine, unit: str) -> None:
    for model in lensd_engine.models:
        job = Job(
            {"prompt": "Mary and John went", "unit": unit, "positions": "all", "direct_effect": True}, model
        )
        outcome = lensd_engine.run(Dla(), job)
        assert outcome.error is None, f"{model}: {outcome.error}"
