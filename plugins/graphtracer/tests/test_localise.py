"""The answer: one place, a path, words, and nothing it should not know."""

import copy
import json
from itertools import pairwise
from pathlib import Path

import pytest

from lensd_graphtracer.examples import MISREAD_PRICE
from plugins.graphtracer.tests.logs import BENCHMARK, QuietContext, found, needs_benchmark, plain, run


def test_the_agent_who_assumed_is_the_root_cause() -> None:
    root = found(MISREAD_PRICE).records["root_cause"].values
    assert (root["agent"], root["step"]) == ("Researcher", 1)
    assert root["path"][0] == 1
    assert root["path"][-1] == root["symptom"] == 5
    assert any("assume" in words for words in root["evidence"])


def test_probabilities_add_up_over_steps_and_agents() -> None:
    table = found(MISREAD_PRICE, top_k=100).tables["suspects"].columns
    assert abs(sum(table["value"]) - 1.0) < 1e-9
    by_agent = dict(zip(table["agent"], table["agent_value"], strict=True))
    assert abs(sum(by_agent.values()) - 1.0) < 1e-9


def test_the_path_follows_edges() -> None:
    result = found(MISREAD_PRICE)
    path = result.records["root_cause"].values["path"]
    assert all(pair in result.edges for pair in pairwise(path))
    assert [v for v in result.nodes if result.nodes[v]["on_path"]] == path


def test_whoever_only_runs_code_is_never_blamed() -> None:
    assert "Computer_terminal" not in found(MISREAD_PRICE, top_k=100).tables["suspects"].columns["agent"]


def test_the_right_answer_changes_nothing_unless_it_may_be_used() -> None:
    other = {**MISREAD_PRICE, "right_answer": "34.0"}
    assert found(MISREAD_PRICE).tables["suspects"] == found(other).tables["suspects"]
    used, ignored = found(other, use_answer=True), found(other)
    assert used.tables["suspects"].columns["value"] != ignored.tables["suspects"].columns["value"]


def test_a_missing_right_answer_is_said() -> None:
    context = QuietContext()
    found(plain(("A", "one 11"), ("B", "two 22")), context, use_answer=True)
    assert context.warnings == ["NO_RIGHT_ANSWER"]


def test_one_step_is_to_blame_for_itself() -> None:
    context = QuietContext()
    root = found(plain(("A", "I guess it is 12.")), context).records["root_cause"].values
    assert (root["step"], root["path"], root["confidence"]) == (0, [0], 1.0)
    assert context.warnings == ["ONE_STEP"]


def test_a_log_without_speakers_is_warned_of() -> None:
    context = QuietContext()
    root = found({"task": "t", "steps": [{"content": "x 11"}, {"content": "y 11"}]}, context).records[
        "root_cause"
    ]
    assert root.values["agent"] == "(unnamed)"
    assert context.warnings == ["NO_SPEAKERS"]


def test_empty_steps_keep_their_place_in_the_log() -> None:
    log = plain(("A", ""), ("B", "I assume 12.50."), ("C", "  "), ("D", "So 12.50 it is."))
    result = found(log)
    assert result.tables["steps"].columns["step"] == [0, 1, 2, 3]
    assert set(result.tables["suspects"].columns["step"]) == {1, 3}


def test_binary_junk_in_a_step_is_only_text() -> None:
    junk = "".join(chr(i) for i in range(1, 256)) + "\ud83d\ude00\u0000"
    result = found(
        plain(("A", junk.encode("utf-8", "replace").decode()), ("B", "x \x00\x07 48213"), ("C", "48213"))
    )
    assert (1, 2) in result.edges


@pytest.mark.parametrize("edges", ["references", "shuffled", "time", "none"])
def test_every_ablation_gives_an_answer(edges: str) -> None:
    result = found(MISREAD_PRICE, edges=edges)
    assert result.records["root_cause"].values["step"] in range(6)
    if edges == "none":
        assert not result.edges
    if edges == "time":
        assert all(target - source == 1 for source, target in result.edges)


def test_results_are_the_same_every_time() -> None:
    assert list(run(MISREAD_PRICE)) == list(run(MISREAD_PRICE))


@needs_benchmark
def test_labels_are_never_read() -> None:
    for path in [*sorted(BENCHMARK.rglob("*.json"))[::9]]:
        log = json.loads(Path(path).read_text(encoding="utf-8"))
        changed = copy.deepcopy(log)
        changed |= {"mistake_agent": "Nobody", "mistake_step": "999", "mistake_reason": "none"}
        changed |= {"is_correct": True, "is_corrected": True, "ground_truth": "something else"}
        assert list(run(log)) == list(run(changed)), path


def test_nothing_that_serves_imports_the_labels() -> None:
    folder = Path(__file__).parents[1] / "src" / "lensd_graphtracer"
    offline = {"benchmark.py", "training.py", "evaluate.py", "experiments.py", "score_table.py"}
    for path in folder.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if path.name not in offline:
            assert "mistake_step" not in text or path.name in ("who_and_when.py", "fault_analyzer.py"), path
            assert "lensd_graphtracer.benchmark" not in text, path
