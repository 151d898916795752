"""The sessions that come with the package, and the README, say what is true."""

import json
import re
from pathlib import Path

from lensd_shop_r1 import ShopR1, ShopR1Params, read_sessions
from lensd_shop_r1.output import Malformed, read_output
from lensd_shop_r1.params import ACTION_TYPES, MAX_REFERENCE_CHARS, Rollout
from lensd_shop_r1.scoring import prepare

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SESSIONS = read_sessions()
OFF = {"self_certainty": "off"}


def test_there_are_a_few_dozen_of_all_three_types() -> None:
    assert len(SESSIONS) >= 30
    assert len({session.id for session in SESSIONS}) == len(SESSIONS)
    counts = [sum(s.reference["type"] == kind for s in SESSIONS) for kind in ACTION_TYPES]
    assert min(counts) >= 5


def test_the_first_answer_is_right_and_no_other_is() -> None:
    for session in SESSIONS:
        params = ShopR1Params.parse({"items": session.items(), **OFF})
        scores = [prepare(i, item, params, None).score for i, item in enumerate(params.items)]
        assert [score.error for score in scores] == [None] * len(scores), session.id
        assert scores[0].total == max(score.total for score in scores), session.id
        assert scores[0].is_exact, session.id
        same = {(session.id, i) for i, score in enumerate(scores[1:], 1) if score.is_exact}
        assert same <= {("pan-done", 1)}, same  # right action, but an empty rationale


def test_there_are_malformed_answers_and_near_misses() -> None:
    outputs = [answer.output for session in SESSIONS for answer in session.answers]
    assert sum(isinstance(read_output(text, "strict"), Malformed) for text in outputs) >= 4
    assert sum(isinstance(read_output(text, "lenient"), Malformed) for text in outputs) == 2
    params = ShopR1Params.parse({"items": [i for s in SESSIONS for i in s.items()], **OFF})
    rouges = [prepare(i, item, params, None).score.action.rouge_text for i, item in enumerate(params.items)]
    assert any(rouge is not None and 0.5 < rouge < 0.75 for rouge in rouges)
    assert any(rouge == 0.75 for rouge in rouges)


def first_cells(heading: str) -> set[str]:
    """Names in back-quotes in the first column of the table below ``heading``."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_the_readme_describes_every_parameter_and_result() -> None:
    names = {field.alias or name for name, field in ShopR1Params.model_fields.items()}
    assert first_cells("Parameters") == names
    assert first_cells("Results") == {spec.name for spec in ShopR1.results}


def test_the_readme_states_the_defaults_in_force() -> None:
    section = README.split("## Parameters\n")[1].split("\n## ")[0]
    for name, field in ShopR1Params.model_fields.items():
        if not field.is_required():
            default = json.dumps(field.default).strip('"')
            assert re.search(rf"\| `{field.alias or name}` \| `?{re.escape(default)}`? \|", section), name
    assert f"{MAX_REFERENCE_CHARS:,}" in README


def test_the_shown_request_is_valid() -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    assert all(isinstance(item, Rollout) for item in ShopR1Params.parse(json.loads(shown)).items)
