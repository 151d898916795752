"""The reward of actions: every cell of the table by hand, and what must hold for all."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensd_shop_r1.action import ActionReward, is_exact, reward_action
from lensd_shop_r1.output import Predicted
from lensd_shop_r1.params import Reference, ShopR1Params
from lensd_shop_r1.rouge import rouge_l
from plugins.shop_r1.tests.rollouts import output, rollout

ITEM = rollout(output("a", "terminate"), "terminate")
PARAMS = ShopR1Params.parse({"items": [ITEM]})
END = Reference(type="terminate")
BUY = Reference(type="click", name="buy it now please")
TEA = Reference(type="type_and_submit", name="search box", text="green tea from japan")


def parts(reward: ActionReward) -> tuple[float, float, float]:
    return reward.type, reward.attribute, reward.value


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        # terminate: the type is all there is
        (Predicted("terminate"), END, (0.3, 0, 0)),
        (Predicted("terminate", "x", "y"), END, (0.3, 0, 0)),
        (Predicted("click", "buy"), END, (0, 0, 0)),
        # click: type, a name at all, the right name
        (Predicted("click"), BUY, (0.3, 0, 0)),
        (Predicted("click", "  "), BUY, (0.3, 0, 0)),
        (Predicted("click", "sell"), BUY, (0.3, 0.2, 0)),
        (Predicted("click", "buy it now"), BUY, (0.3, 0.2, 1000 * 6 / 7)),
        (Predicted("click", "buy it"), BUY, (0.3, 0.2, 0)),  # 2/3 is below the threshold
        (Predicted("click", "buy it now today"), BUY, (0.3, 0.2, 750)),  # 0.75 is not
        (Predicted("click", "BUY it now please "), BUY, (0.3, 0.2, 1000)),
        (Predicted("click", "buy it now please", "text"), BUY, (0.3, 0.2, 1000)),
        (Predicted("terminate", "buy it now please"), BUY, (0, 0, 0)),
        # type_and_submit: type, a name and a text at all, each compared
        (Predicted("type_and_submit"), TEA, (0.3, 0, 0)),
        (Predicted("type_and_submit", "box"), TEA, (0.3, 0.1, 0)),
        (Predicted("type_and_submit", "", "coffee"), TEA, (0.3, 0.1, 0)),
        (Predicted("type_and_submit", "cart", "coffee"), TEA, (0.3, 0.2, 0)),
        (Predicted("type_and_submit", "search box", "coffee"), TEA, (0.3, 0.2, 0.1)),
        (Predicted("type_and_submit", "cart", "green tea from japan"), TEA, (0.3, 0.2, 1000)),
        (Predicted("type_and_submit", "search box", "green tea from"), TEA, (0.3, 0.2, 0.1 + 1000 * 6 / 7)),
        (Predicted("type_and_submit", "search box", "green tea from japan"), TEA, (0.3, 0.2, 1000.1)),
        (Predicted("click", "search box", "green tea from japan"), TEA, (0, 0, 0)),
        # no type at all that exists
        (Predicted("scroll", "buy it now please"), BUY, (0, 0, 0)),
        (Predicted("CLICK", "buy it now please"), BUY, (0, 0, 0)),
    ],
)  # fmt: skip
def test_cells_of_the_table(predicted: Predicted, true: Reference, expected: tuple[float, ...]) -> None:
    assert parts(reward_action(predicted, true, PARAMS)) == pytest.approx(expected, abs=1e-12)


def test_the_maxima_are_those_stated() -> None:
    best = [
        PARAMS.format_reward
        + sum(parts(reward_action(Predicted(t.type, t.name or "", t.text or ""), t, PARAMS)))
        for t in (END, BUY, TEA)
    ]
    assert best == pytest.approx([0.8, 1001.0, 1001.1])


COEFFICIENTS: dict[str, tuple[float, Predicted, Reference, tuple[float, float, float]]] = {
    "type_reward": (7, Predicted("terminate"), END, (7, 0, 0)),
    "click_name_reward": (7, Predicted("click", "x"), BUY, (0.3, 7, 0)),
    "type_name_reward": (7, Predicted("type_and_submit", "x"), TEA, (0.3, 7, 0)),
    "type_text_reward": (7, Predicted("type_and_submit", "", "x"), TEA, (0.3, 7, 0)),
    "type_name_factor": (7, Predicted("type_and_submit", "search box"), TEA, (0.3, 0.1, 7)),
    "dars": (7, Predicted("click", "buy it now please"), BUY, (0.3, 0.2, 7)),
    "rouge_threshold": (0.6, Predicted("click", "buy it"), BUY, (0.3, 0.2, 1000 * 2 / 3)),
}


@pytest.mark.parametrize("name", COEFFICIENTS)
def test_every_coefficient_is_a_parameter(name: str) -> None:
    value, predicted, true, expected = COEFFICIENTS[name]
    params = ShopR1Params.parse({"items": [ITEM], name: value})
    assert parts(reward_action(predicted, true, params)) == pytest.approx(expected)


def test_what_was_not_compared_has_no_rouge() -> None:
    assert reward_action(Predicted("click", "x"), TEA, PARAMS).rouge_text is None
    click = reward_action(Predicted("click", "x"), BUY, PARAMS)
    assert (click.rouge_name, click.rouge_text) == (0.0, None)


@pytest.mark.parametrize(
    ("predicted", "true", "expected"),
    [
        (Predicted("click", " Buy it NOW please\n"), BUY, True),
        (Predicted("click", "buy it  now please"), BUY, False),
        (Predicted("click", "buy"), BUY, False),
        (Predicted("terminate", "anything"), END, True),
        (Predicted("type_and_submit", "search box", "green tea from japan"), TEA, True),
        (Predicted("type_and_submit", "search", "green tea from japan"), TEA, False),
        (Predicted("type_and_submit", "search box", "tea"), TEA, False),
        (Predicted("click", "search box"), TEA, False),
    ],
)
def test_exact_is_every_field_but_for_case_and_ends(
    predicted: Predicted, true: Reference, expected: bool
) -> None:
    assert is_exact(predicted, true) is expected


phrases = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=6).map(" ".join)
kinds = st.sampled_from(["type_and_submit", "click", "terminate"])
actions = st.builds(Predicted, kinds, phrases, phrases)
MAXIMA = {"terminate": 0.3, "click": 1000.5, "type_and_submit": 1000.6}


@st.composite
def references(draw: Any) -> Reference:
    kind = draw(kinds)
    fields = {"type_and_submit": ("name", "text"), "click": ("name",), "terminate": ()}[kind]
    return Reference(type=kind, **{field: draw(phrases) for field in fields})


@given(actions, references())
def test_no_reward_is_negative_or_above_the_maximum(predicted: Predicted, true: Reference) -> None:
    reward = parts(reward_action(predicted, true, PARAMS))
    assert min(reward) >= 0
    assert sum(reward) <= MAXIMA[true.type] + 1e-9


@given(phrases, phrases, phrases)
def test_a_better_name_never_earns_less(one: str, other: str, true: str) -> None:
    reference = Reference(type="click", name=true)
    better, worse = sorted((one, other), key=lambda name: -rouge_l(name, true))
    assert (
        reward_action(Predicted("click", better), reference, PARAMS).value
        >= reward_action(Predicted("click", worse), reference, PARAMS).value
    )
