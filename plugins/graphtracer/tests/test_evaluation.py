"""The evaluation: the scorer is known to be right, and nothing trained is judged on what it was trained on."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lensd_graphtracer.benchmark import Case, read_cases, to_sample
from lensd_graphtracer.experiments import as_shipped, trained, trivial
from lensd_graphtracer.features import FEATURES, Family
from lensd_graphtracer.fitting import held_out, newton, objective
from lensd_graphtracer.ranker import card, shipped
from lensd_graphtracer.rules import RULES
from lensd_graphtracer.score_table import as_json, markdown
from lensd_graphtracer.scoring import judge, judge_uniform, score
from lensd_graphtracer.trace import Step, read_speaker
from plugins.graphtracer.tests.logs import BENCHMARK, needs_benchmark

#: Agent and step in percent on the 63 and 20 files, as computed independently of this code.
KNOWN = {
    "first worker that speaks, and its step": {
        "algorithm_generated": (44.4, 19.0),
        "hand_crafted": (70.0, 15.0),
    },
    "most frequent speaker, step 1": {"algorithm_generated": (52.4, 27.0), "hand_crafted": (25.0, 0.0)},
    "last speaker, last step": {"algorithm_generated": (36.5, 1.6), "hand_crafted": (55.0, 20.0)},
}


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return read_cases(BENCHMARK)


@needs_benchmark
def test_trivial_rules_score_what_they_are_known_to(cases: list[Case]) -> None:
    by_name = {method.name: method for method in trivial(cases)}
    for name, subsets in KNOWN.items():
        for subset, (agent, step) in subsets.items():
            mine = [o for o, case in zip(by_name[name].outcomes, cases, strict=True) if case.subset == subset]
            assert round(100 * sum(o.agent for o in mine) / len(mine), 1) == agent, (name, subset)
            assert round(100 * sum(o.step for o in mine) / len(mine), 1) == step, (name, subset)


@needs_benchmark
def test_the_ranker_beats_the_best_rule_of_the_specification_on_runs_it_has_not_seen(
    cases: list[Case],
) -> None:
    method = trained("ranker", cases)
    for subset, (agent, step) in {"algorithm_generated": (52.4, 27.0), "hand_crafted": (70.0, 20.0)}.items():
        mine = [o for o, case in zip(method.outcomes, cases, strict=True) if case.subset == subset]
        assert 100 * sum(o.agent for o in mine) / len(mine) > agent
        assert 100 * sum(o.step for o in mine) / len(mine) > step


@needs_benchmark
def test_no_run_is_judged_by_weights_that_saw_its_question(
    cases: list[Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = [to_sample(case) for case in cases[:6]]
    seen: list[set[str]] = []
    monkeypatch.setattr(
        "lensd_graphtracer.fitting.fit", lambda rest, *_: seen.append({s.group for s in rest})
    )
    held_out(samples)
    groups = list(dict.fromkeys(s.group for s in samples))
    assert [set(groups) - rest for rest in seen] == [{group} for group in groups]


@needs_benchmark
def test_the_table_says_which_runs_the_weights_have_seen(cases: list[Case]) -> None:
    some = cases[:4]
    methods = [*trivial(some), as_shipped(some)]
    assert "trained on 4 of the 4 questions" in markdown(some, methods)
    written = json.loads(as_json(some, methods))
    assert written["questions_seen_in_training"] == 4
    assert {m["name"] for m in written["methods"]} == {m.name for m in methods}


def test_a_substring_counts_only_the_official_way() -> None:
    outcome = judge("A", 12, "A", 1)
    assert (outcome.step, outcome.step_substring) == (0.0, 1.0)
    assert judge("A", 1, "A", 12).step_substring == 0.0
    assert judge("A", 12, "B", 14).near == (0.0, 1.0, 1.0)


def test_uniform_guessing_is_computed_exactly() -> None:
    outcome = judge_uniform(["A", "B", "B", "B"], "B", 3)
    assert (outcome.agent, outcome.step) == (0.75, 0.25)


def test_an_interval_holds_its_mean_and_shrinks_with_more_runs() -> None:
    few, many = score([1.0, 0.0] * 10), score([1.0, 0.0] * 1000)
    assert few.low < few.percent == 50.0 < few.high
    assert many.high - many.low < (few.high - few.low) / 5


def test_rules_give_places_of_the_log() -> None:
    raw = ["human", "Orchestrator (-> Coder)", "Coder", "Computer_terminal", "Orchestrator (thought)"]
    steps = [Step(i, read_speaker(name)[0], "x", read_speaker(name)[1]) for i, name in enumerate(raw)]
    guesses = {name: (rule(steps).agent, rule(steps).step) for name, rule in RULES.items()}
    assert guesses["first worker that speaks, and its step"] == ("Coder", 2)
    assert guesses["last worker that speaks, and its step"] == ("Coder", 2)
    assert guesses["most frequent speaker, step 1"] == ("Orchestrator", 1)
    assert guesses["last speaker, last step"] == ("Orchestrator", 4)


def test_newton_finds_the_maximum_of_the_penalised_likelihood() -> None:
    draw = np.random.default_rng(0)
    pairs = [(draw.normal(size=(6, 3)), int(draw.integers(6))) for _ in range(20)]
    best = newton(pairs, 2.0)
    for i in range(3):
        nudge = np.zeros(3)
        nudge[i] = 1e-4
        assert objective(pairs, best, 2.0) >= objective(pairs, best + nudge, 2.0)
        assert objective(pairs, best, 2.0) >= objective(pairs, best - nudge, 2.0)


def test_the_card_states_the_training_data() -> None:
    stated = card()["card"]
    assert stated["files"] == 83
    assert {"data", "model", "held_out", "not_for", "groups"} <= stated.keys()
    for setting in (False, True):
        families = shipped(with_answer=setting).families
        for family, described in FEATURES.items():
            assert set(described) <= set(families[family].weights), family
    assert sum(len(shipped().families[f].weights) for f in Family) < 25


@pytest.mark.slow
@needs_benchmark
def test_training_again_gives_the_shipped_weights(tmp_path: Path) -> None:
    out = tmp_path / "weights.json"
    asked = [sys.executable, "-m", "lensd_graphtracer.training", str(BENCHMARK), "--out", str(out)]
    subprocess.run(asked, check=True, capture_output=True)
    trained_now = json.loads(out.read_text(encoding="utf-8"))
    assert trained_now["card"] == card()["card"]
    for setting, ranker in trained_now["rankers"].items():
        for family, values in ranker["families"].items():
            kept = card()["rankers"][setting]["families"][family]
            for name, numbers in values["features"].items():
                assert numbers == pytest.approx(kept["features"][name], abs=1e-4), (setting, name)


def test_a_folder_without_files_is_an_error_in_words(tmp_path: Path) -> None:
    asked = [sys.executable, "-m", "lensd_graphtracer.evaluate", str(tmp_path)]
    done = subprocess.run(asked, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "no .json files" in done.stderr
