"""The embedded model through the real client: the answers a first-time user gets."""

import pytest

from lensd_client import Client
from tests.e2e.daemon import Daemon

pytestmark = pytest.mark.weights


def test_paris_is_attributed_and_adds_up(embedded: Daemon) -> None:
    with Client(embedded.grpc) as lens:
        run = lens.analyze("dla", prompt="The capital of France is", unit="head")
        summary, rows = run["summary"], run["contributions"].to_dict()
        assert summary["target"] == " Paris"
        assert summary["logit"] == pytest.approx(17.371269, abs=1e-3)
        assert summary["completeness_error"] <= 1e-4
        assert sum(v for v, kind in zip(rows["value"], rows["kind"], strict=True) if kind != "rounding") == (
            pytest.approx(summary["logit"], abs=1e-4)
        )
        assert run.completed.usage.tokens == len(summary["tokens"])


def test_mary_beats_john_by_the_known_difference(embedded: Daemon) -> None:
    prompt = "When Mary and John went to the store, John gave a drink to"
    with Client(embedded.grpc) as lens:
        alone = lens.analyze("dla", prompt=prompt)["summary"]
        assert (alone["target"], alone["logit"]) == (" Mary", pytest.approx(11.037, abs=1e-2))
        versus = lens.analyze("dla", prompt=prompt, target=" Mary", contrast=" John")["summary"]
        assert versus["logit"] == pytest.approx(6.12, abs=1e-2)


def test_the_model_is_ready_and_named(embedded: Daemon) -> None:
    assert embedded.models == ["smollm2-135m"]
    with Client(embedded.grpc) as lens:
        model = lens.model("smollm2-135m")
        assert (model.state, model.dtype) == ("resident", "float32")
