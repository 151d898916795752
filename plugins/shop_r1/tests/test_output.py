"""Outputs well-formed and not: what counts, where the rationale stands, what is said of the rest."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensd_shop_r1.output import Malformed, Output, Predicted, read_output
from plugins.shop_r1.tests.rollouts import output

CLICK = '{"type": "click", "name": "buy"}'


def problem(text: str, mode: str = "strict") -> str:
    found = read_output(text, mode)  # type: ignore[arg-type]
    assert isinstance(found, Malformed), found
    return found.problem


def test_a_plain_output() -> None:
    text = '{"rationale": "I need it", "action": {"type": "click", "name": "buy"}}'
    found = read_output(text, "strict")
    assert found == Output(Predicted("click", "buy"), 15, 24)
    assert text[15:24] == "I need it"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "not JSON: it does not begin with '{'"),
        ("I buy it.", "not JSON: it does not begin"),
        ("[]", "not JSON: it does not begin"),
        ('"rationale"', "not JSON: it does not begin"),
        ("{", "a key in double quotes is missing at character 1"),
        ("{}", "no 'rationale'"),
        ('{"rationale": "a"}', "no 'action'"),
        ('{"action": ' + CLICK + "}", "no 'rationale'"),
        ('{"rationale": "a", "action": ' + CLICK, "',' or '}' is missing"),
        ('{"rationale": "a" "action": ' + CLICK + "}", "',' or '}' is missing"),
        ('{"rationale": "a", "action": ' + CLICK + ",}", "a key in double quotes is missing"),
        ('{"rationale" "a"}', "':' is missing"),
        ('{"rationale": }', "Expecting value"),
        ("{'rationale': 'a'}", "a key in double quotes is missing"),
        ('{"rationale": "a\nb", "action": ' + CLICK + "}", "Invalid control character"),
        ('{"rationale": "a", "action": ' + CLICK + "} done", "something follows the object"),
        ('{"rationale": NaN, "action": ' + CLICK + "}", "NaN is not JSON"),
        ('{"rationale": ' + "9" * 5000 + "}", "not JSON"),
        ('{"rationale": ' + "[" * 100_000, "nested too deeply"),
        ('{"rationale": 5, "action": ' + CLICK + "}", "'rationale' is not a string"),
        ('{"rationale": null, "action": ' + CLICK + "}", "'rationale' is not a string"),
        ('{"rationale": "a", "action": "click"}', "'action' is not an object"),
        ('{"rationale": "a", "action": [' + CLICK + "]}", "'action' is not an object"),
        ('{"rationale": "a", "action": {"name": "buy"}}', "no 'type' in 'action'"),
        ('{"rationale": "a", "action": {"type": null}}', "'type' of 'action' is not a string"),
        ('{"rationale": "a", "action": {"type": "click", "name": 7}}', "'name' of 'action' is not a string"),
        ('{"rationale": "a", "action": {"type": "click", "text": []}}', "'text' of 'action' is not a string"),
        ("```json\n" + output("a", "terminate") + "\n```", "it does not begin with '{'"),
        ("I think: " + output("a", "terminate"), "it does not begin with '{'"),
        ("\ufeff" + output("a", "terminate"), "it does not begin with '{'"),
    ],
)  # fmt: skip
def test_a_malformed_output_says_why(text: str, said: str) -> None:
    assert said in problem(text)


def test_a_problem_quotes_nothing_of_the_output() -> None:
    assert "secret" not in problem('{"secret": "secret", "rationale": secret}')


@pytest.mark.parametrize(
    "text",
    [
        "```json\n" + output("a", "terminate") + "\n```",
        "I think {so}: " + output("a", "terminate") + " That is all.",
        '{"note": "first"} ' + output("a", "terminate"),
        output("a", "terminate"),
    ],
)
def test_lenient_finds_the_object_in_what_surrounds_it(text: str) -> None:
    found = read_output(text, "lenient")
    assert isinstance(found, Output)
    assert found.action == Predicted("terminate")
    assert text[found.start : found.end] == "a"


def test_lenient_still_wants_an_object() -> None:
    assert problem("I buy it.", "lenient") == "no '{' in it"
    assert problem('```{"rationale": "a"}```', "lenient") == "no 'action'"


def test_an_unknown_type_and_missing_fields_are_well_formed() -> None:
    found = read_output(output("a", "scroll", name=None), "strict")
    assert isinstance(found, Output)
    assert found.action == Predicted("scroll")


def test_the_last_of_two_equal_keys_counts() -> None:
    text = '{"rationale": "first", "action": ' + CLICK + ', "rationale": "last"}'
    found = read_output(text, "strict")
    assert isinstance(found, Output)
    assert text[found.start : found.end] == "last"


@pytest.mark.parametrize("mode", ["strict", "lenient"])
@pytest.mark.parametrize("piece", ["{", '{"a":', "x", " ", '"', "\\", "{}", '{"rationale":"a"}', "[", "é"])
def test_a_megabyte_of_anything_is_read_quickly(mode: str, piece: str) -> None:
    text = piece * (2**20 // len(piece))
    started = time.process_time()
    problem(text, mode)
    assert time.process_time() - started < 2


def test_a_rationale_of_a_megabyte_is_well_formed() -> None:
    found = read_output(output("é" * 2**19, "terminate"), "strict")
    assert isinstance(found, Output)


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@given(texts, texts, texts, st.booleans(), st.booleans(), st.sampled_from([None, 0, 2]))
def test_order_of_keys_and_white_space_do_not_matter(
    rationale: str, name: str, text: str, swap: bool, ascii_only: bool, indent: int | None
) -> None:
    action = {"type": "type_and_submit", "name": name, "text": text}
    members = [("rationale", rationale), ("action", dict(reversed(action.items())) if swap else action)]
    written = json.dumps(dict(reversed(members) if swap else members), ensure_ascii=ascii_only, indent=indent)
    for mode in ("strict", "lenient"):
        found = read_output(f"\n {written}\t\r\n", mode)  # type: ignore[arg-type]
        assert isinstance(found, Output)
        assert found.action == Predicted("type_and_submit", name, text)
        raw = f"\n {written}\t\r\n"[found.start : found.end]
        assert json.loads(f'"{raw}"') == rationale
