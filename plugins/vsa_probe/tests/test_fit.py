"""Fits on the real engine: what they find, refuse, warn of and leave behind when cut off."""

import asyncio
import re
from contextlib import aclosing
from typing import Any

import pytest

from lensd_api.testing import Engine, Job
from lensd_server.engine.events import Found
from lensd_server.tiny_engine import TinyEngine
from lensd_vsa_probe import FitParams, VsaFit, VsaProbe
from lensd_vsa_probe.facts import RELATIONS, analogies
from plugins.vsa_probe.tests.small_fit import ROWS, small

MODEL = "llama"


def fit(engine: Engine, **changes: Any) -> dict[str, Any]:
    """Results by name, of which the last part counts."""
    outcome = engine.run(VsaFit(), Job(small(**changes), MODEL))
    assert outcome.error is None, outcome.error
    return {result.name: result for result in outcome.results}


def lines(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Rows of ``scores`` by name."""
    columns = results["scores"].columns
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    return {row["name"]: row for row in rows}


def refusal(engine: Engine, **changes: Any) -> Any:
    return engine.run(VsaFit(), Job(small(**changes), MODEL)).error


def test_a_probe_learns_what_its_controls_cannot(lensd_engine: Engine) -> None:
    """On a tiny random model, whose state still tells which words it has read."""
    scores = lines(
        fit(
            lensd_engine,
            analogies=[list(row) for row in analogies("capital")],
            dim=256,
            width=64,
            epochs=30,
            learning_rate=5e-3,
            evaluation="full",
            seed=2,
        )
    )
    assert set(scores) >= {"probe", "combination", "example_pair", "other_template", "linear_map"}
    probe = scores["probe"]
    assert probe["probing_at_1"] > 0.5
    for control in ("constant", "mean_target", "permuted_states", "shuffled_targets", "layer_0"):
        assert scores[control]["probing_at_1"] < probe["probing_at_1"] - 0.3, control
        assert scores[control]["cosine"] < probe["cosine"], control
    assert scores["constant"]["bit_accuracy"] == pytest.approx(0.75, abs=0.02)
    assert probe["probing_at_1"] <= probe["probing_at_3"] <= probe["probing_at_5"]


def test_equal_fits_store_equal_contents_and_another_seed_others(lensd_engine: Engine) -> None:
    first, second, other = (
        fit(lensd_engine, artifact="twice", seed=seed)["artifact"].values for seed in (0, 0, 1)
    )
    assert first["sha256"] == second["sha256"] != other["sha256"]
    assert first["reference"] != second["reference"]


def test_a_fitted_probe_is_reused_for_equal_parameters_only(lensd_engine: Engine) -> None:
    fresh = fit(lensd_engine, artifact="again")
    reused = fit(lensd_engine, artifact="again", reuse=True)
    assert reused["artifact"].values == fresh["artifact"].values | {"reused": True}
    assert reused["evaluation"] == fresh["evaluation"]
    assert not fit(lensd_engine, artifact="again", reuse=True, epochs=4)["artifact"].values["reused"]


@pytest.mark.parametrize("device", ["auto", "model", "cpu"])
def test_the_evaluation_says_where_encoders_were_trained(
    lensd_engine: Engine, device: str, pytestconfig: pytest.Config
) -> None:
    found = fit(lensd_engine, artifact="placed", device=device)["evaluation"].values
    models = str(pytestconfig.getoption("lensd_device"))
    assert found["trained_on"].startswith("cpu" if device == "cpu" else models)


def test_what_training_takes_is_known_to_admission(lensd_engine: Engine) -> None:
    card = lensd_engine.card(MODEL)
    narrow, wide = (VsaFit().estimate(FitParams.parse(small(width=width)), card) for width in (64, 1024))
    grown = (1024**2 - 64**2) * 2 * 4 * 4  # two square maps in fp32, with gradients and two moments
    assert grown < wide.bytes - narrow.bytes < 2 * grown


@pytest.mark.parametrize("events", [1, 3, 6])
def test_a_fit_that_was_cut_off_goes_on_to_the_same_artifact(events: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("lensd_vsa_probe.fitting.SAVE_WAVES", 1)
    monkeypatch.setattr("lensd_vsa_probe.fitting.SAVE_EPOCHS", 1)
    engine = TinyEngine((MODEL,))
    try:
        whole = fit(engine, artifact="whole")["artifact"].values["sha256"]
        job = Job(small(artifact="cut"), MODEL)

        async def cut() -> int:
            found = 0
            async with aclosing(engine._start(VsaFit(), job)) as stream:
                async for event in stream:
                    found += isinstance(event, Found)
                    if found == events:
                        break
            await engine.executor.settled()
            return found

        assert asyncio.run_coroutine_threadsafe(cut(), engine._loop).result() == events
        assert engine.run(VsaProbe(), Job({"artifact": "cut", "prompts": ["x"]}, MODEL)).error is not None
        outcome = engine.run(VsaFit(), job)
        results = {result.name: result for result in outcome.results}
        assert results["artifact"].values["sha256"] == whole
        epochs = [e for r in outcome.results if r.name == "training" for e in r.columns["epoch"]]
        assert len(epochs) == 7, "every epoch is shown, those before the cut too: 3 + 3 + 1"
    finally:
        engine.close()


def test_warnings_say_what_the_corpus_lacks(lensd_engine: Engine) -> None:
    rows = [list(row) for row in ROWS]
    contradiction = [*rows[0][:3], "elephant"]
    job = Job(small(analogies=[*rows, rows[0], contradiction], dim=64), MODEL)
    outcome = lensd_engine.run(VsaFit(), job)
    assert {reason for reason, _ in outcome.warnings} >= {
        "DUPLICATE_ROWS",
        "CONFLICTING_ROWS",
        "ANSWERED_WITHOUT_MODEL",
    }
    many = [[f"k{i}", f"v{i}", f"k{i + 1}", f"v{i + 1}"] for i in range(300)]
    warned = lensd_engine.run(VsaFit(), Job(small(analogies=many, dim=64, epochs=1), MODEL)).warnings
    assert any(reason == "SMALL_DIMENSION" and "601" not in text for reason, text in warned)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"analogies": []}, "at least 10"),
        ({"analogies": [["a", "b", "a", "b"]] * 20}, "only one pair"),
        ({"template": "{a} and {b}"}, r"\{c\}"),
        ({"template": "{a} {b} {c} {a}"}, "once"),
        ({"layers": [99]}, "99"),
        ({"texts": [{"text": "x", "features": ["y"]}]}, "exactly one"),
        ({"analogies": None, "corpus": "nothing-of-that-name"}, "no artifact"),
        ({"artifact": "../up"}, "artifact"),
    ],
)
def test_what_cannot_be_fitted_is_refused_with_the_reason(
    lensd_engine: Engine, changes: dict[str, Any], message: str
) -> None:
    error = refusal(lensd_engine, **changes)
    assert error is not None
    assert re.search(message, error.message), error.message


def test_texts_with_features_are_read_without_unbinding(lensd_engine: Engine) -> None:
    """A bundle probe: concepts of a text, and what the model adds by going on."""
    words = [pair[0] for pair in RELATIONS["capital"]]
    texts = [
        {"text": f"{left} and {right} are countries", "features": [left, right]}
        for left in words
        for right in words[:4]
        if left != right
    ]
    results = fit(
        lensd_engine, artifact="texts", analogies=None, texts=texts, epochs=20, dim=256, learning_rate=5e-3
    )
    assert lines(results)["probe"]["recall"] > lines(results)["constant"]["recall"]
    assert "combination" not in lines(results)
    prompt = {"artifact": "texts", "prompts": ["France and Italy are countries"], "generate": 1}
    outcome = lensd_engine.run(VsaProbe(), Job(prompt, MODEL))
    assert outcome.error is None, outcome.error
    concepts = next(r for r in outcome.results if r.name == "concepts").columns
    assert set(concepts["when"]) == {"before", "after"}
    assert set(concepts["category"]) <= {"question", "answer", "other"}


def test_a_corpus_of_a_stored_probe_is_used_again(lensd_engine: Engine) -> None:
    fit(lensd_engine, artifact="source")
    again = fit(lensd_engine, artifact="derived", analogies=None, corpus="source", rows=20)
    assert again["evaluation"].values["examples"] == 20
