"""What is refused, for an item or for the whole request, and where it says so."""

from typing import Any

import pytest

from lensd_api import InvalidParams
from lensd_api.testing import Engine
from lensd_shop_r1 import ShopR1, ShopR1Params
from lensd_shop_r1.params import RefusedRollout, Rollout
from plugins.shop_r1.tests.rollouts import output, rollout

GOOD = rollout(output("a", "terminate"), "terminate")


def item(**changed: Any) -> Rollout | RefusedRollout:
    values = {key: value for key, value in {**GOOD, **changed}.items() if value is not ...}
    (found,) = ShopR1Params.parse({"items": [values]}).items
    return found


@pytest.mark.parametrize(
    ("changed", "field", "said"),
    [
        ({"reference": ...}, "items[3].reference", "required"),
        ({"reference": {}}, "items[3].reference.type", "required"),
        ({"reference": {"type": "scroll"}}, "items[3].reference.type", "'type_and_submit', 'click' or 'terminate'"),
        ({"reference": {"type": "click"}}, "items[3].reference", "a click needs 'name'"),
        ({"reference": {"type": "click", "name": None}}, "items[3].reference", "a click needs 'name'"),
        ({"reference": {"type": "type_and_submit", "name": "a"}}, "items[3].reference", "needs 'text'"),
        ({"reference": {"type": "terminate", "name": "a"}}, "items[3].reference", "a terminate has no 'name'"),
        ({"reference": {"type": "click", "name": 5}}, "items[3].reference.name", "valid string"),
        ({"reference": {"type": "click", "name": "a" * 20_000}}, "items[3].reference.name", "at most 16384"),
        ({"reference": {"type": "terminate", "x": 1}}, "items[3].reference.x", "no such field"),
        ({"output": ...}, "items[3].output", "required"),
        ({"output": None}, "items[3].output", "valid string"),
        ({"context": ...}, "items[3]", "exactly one of 'context' and 'messages'"),
        ({"context": ""}, "items[3].context", "at least 1 character"),
        ({"messages": [{"role": "user", "content": "a"}]}, "items[3]", "exactly one of"),
        ({"context": ..., "messages": []}, "items[3].messages", "at least 1 item"),
        ({"context": ..., "messages": [{"role": "user"}]}, "items[3].messages.0.content", "required"),
        ({"group": "a"}, "items[3].group", "no such field"),
    ],
)  # fmt: skip
def test_a_bad_item_says_where(changed: dict[str, Any], field: str, said: str) -> None:
    found = item(**changed)
    assert isinstance(found, RefusedRollout), found
    (violation, *_) = found.error(3).violations
    assert violation.field == field
    assert said in violation.description


@pytest.mark.parametrize("wrong", [None, 5, "text", []])
def test_an_item_may_be_anything(wrong: Any) -> None:
    found, good = ShopR1Params.parse({"items": [wrong, GOOD]}).items
    assert isinstance(found, RefusedRollout)
    assert isinstance(good, Rollout)


@pytest.mark.parametrize(
    "reference",
    [
        {"type": "terminate", "name": None, "text": None},
        {"type": "terminate", "name": "", "text": ""},
        {"type": "click", "name": ""},
        {"type": "click", "name": "a", "text": None},
        {"type": "type_and_submit", "name": "", "text": ""},
    ],
)
def test_fields_a_type_does_not_have_may_be_null_or_empty(reference: dict[str, Any]) -> None:
    assert isinstance(item(reference=reference), Rollout)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        ({}, "items"),
        ({"items": []}, "items"),
        ({"items": [GOOD], "self_certainty": "on"}, "self_certainty"),
        ({"items": [GOOD], "parse": "loose"}, "parse"),
        ({"items": [GOOD], "dars": -1}, "dars"),
        ({"items": [GOOD], "rouge_threshold": 1.5}, "rouge_threshold"),
        ({"items": [GOOD], "self_certainty": "off", "token_certainty": True}, "token_certainty"),
        ({"items": [GOOD], "parse_mode": "strict"}, "parse_mode"),
    ],
)
def test_a_bad_request_is_refused_as_a_whole(params: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidParams) as refused:
        ShopR1Params.parse(params)
    assert [v.field for v in refused.value.violations] == [field]


def test_the_schema_shows_callers_a_rollout() -> None:
    schema = ShopR1Params.model_json_schema()
    assert schema["properties"]["items"]["items"] == {"$ref": "#/$defs/Rollout"}
    assert set(schema["$defs"]) == {"Message", "Reference", "Rollout"}


@pytest.mark.parametrize(
    ("changed", "needed"),
    [({}, True), ({"self_certainty": "off"}, False), ({"self_certainty": "off", "logprobs": True}, True)],
)
def test_a_model_is_needed_only_where_it_is_read(
    lensd_engine: Engine, changed: dict[str, Any], needed: bool
) -> None:
    params = ShopR1Params.parse({"items": [GOOD], **changed})
    assert ShopR1().requirements(params).model is needed
    assert not ShopR1().requirements().model
    assert bool(ShopR1().estimate(params, lensd_engine.card("llama")).tokens) is needed


def test_the_estimate_covers_what_runs_and_memory_does_not_grow_with_rollouts(
    lensd_engine: Engine,
) -> None:
    card = lensd_engine.card("llama")
    few, many = (ShopR1Params.parse({"items": [GOOD] * count}) for count in (2_000, 20_000))
    tokens = len(card.encode(GOOD["context"])) + len(card.encode(GOOD["output"]))
    assert ShopR1().estimate(few, card).tokens >= 2_000 * tokens
    assert ShopR1().estimate(few, card).bytes == ShopR1().estimate(many, card).bytes
