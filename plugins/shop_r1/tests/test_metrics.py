"""Metrics and group statistics, worked by hand."""

from statistics import stdev

import pytest

from lensd_shop_r1.action import ActionReward
from lensd_shop_r1.groups import Groups
from lensd_shop_r1.metrics import Metrics
from lensd_shop_r1.params import Reference, Rollout
from lensd_shop_r1.scoring import Score


def counted(*outputs: tuple[str, str, bool]) -> Metrics:
    metrics = Metrics()
    for true, predicted, is_exact in outputs:
        metrics.add(true, predicted, is_exact=is_exact)  # type: ignore[arg-type]
    return metrics


#: true, predicted, exact: clicks 2 of 4 right, one of them exact; a malformed output; terminate 1 of 1.
MIXED = counted(
    ("click", "click", True),
    ("click", "click", False),
    ("click", "terminate", False),
    ("click", "", False),
    ("terminate", "terminate", True),
    ("type_and_submit", "click", False),
)


def test_shares_are_of_all_outputs() -> None:
    overall = MIXED.overall()
    assert overall["exact"] == pytest.approx(2 / 6)
    assert overall["type_accuracy"] == pytest.approx(3 / 6)


def test_f1_is_the_mean_over_three_types() -> None:
    click = 2 * 2 / (4 + 3)  # four true, three predicted, two right
    terminate = 2 * 1 / (1 + 2)
    assert MIXED.of_type("click")["f1"] == pytest.approx(click)
    assert MIXED.of_type("type_and_submit")["f1"] == 0.0
    assert MIXED.overall()["f1"] == pytest.approx((click + terminate + 0) / 3)


def test_by_type_shares_are_of_its_own_outputs() -> None:
    assert MIXED.of_type("click")["exact"] == pytest.approx(1 / 4)
    assert MIXED.of_type("click")["type_accuracy"] == pytest.approx(2 / 4)
    assert MIXED.of_type("terminate")["predicted"] == 2


def test_a_type_that_never_occurs_counts_zero_and_has_no_share() -> None:
    only = counted(("click", "click", True))
    assert only.of_type("terminate") == {
        "count": 0,
        "predicted": 0,
        "exact": None,
        "type_accuracy": None,
        "f1": 0.0,
    }
    assert only.overall()["f1"] == pytest.approx(1 / 3)


def test_always_terminate_is_right_where_the_shopper_left() -> None:
    baseline = MIXED.always_terminate().overall()
    assert baseline["exact"] == baseline["type_accuracy"] == pytest.approx(1 / 6)
    assert baseline["f1"] == pytest.approx(2 * 1 / (1 + 6) / 3)


def test_without_outputs_nothing_is_said() -> None:
    assert set(Metrics().overall().values()) == {None}


def rewarded(group: str, value: float, *, hit: bool, format_reward: float = 0.5) -> Score:
    rollout = Rollout(context="c", output="o", reference=Reference(type="terminate"), group_id=group)
    return Score(0, rollout, format=format_reward, action=ActionReward(value=value, is_hit=hit))


def test_one_hit_makes_the_spread_of_its_group() -> None:
    groups = Groups()
    for value in (1000.0, *[0.0] * 7):
        groups.add(rewarded("a", value, hit=value > 0))
    groups.add(rewarded("b", 0.0, hit=False))
    groups.add(rewarded("b", 0.0, hit=False, format_reward=0.0))
    groups.add(rewarded("", 0.0, hit=False))
    columns = groups.columns()
    assert columns["group"] == ["a", "b"]
    assert columns["rollouts"] == [8, 2]
    assert columns["hits"] == [1, 0]
    assert columns["mean"] == pytest.approx([125.5, 0.25])
    assert columns["std"] == pytest.approx([stdev([1000.0, *[0.0] * 7]), stdev([0.5, 0.0])])
    assert columns["std"][0] == pytest.approx(353.55, abs=0.01)
    assert columns["std_without_value"] == pytest.approx([0.0, stdev([0.5, 0.0])])
    assert groups.summary()["with_hit"] == 1
    assert groups.summary()["without_spread"] == 0


def test_a_group_in_which_all_hit_is_not_decided_by_that() -> None:
    groups = Groups()
    for _ in range(2):
        groups.add(rewarded("a", 1000.0, hit=True))
    assert groups.summary() == {"count": 1, "mean_std": 0.0, "with_hit": 0, "without_spread": 1}


def test_a_group_of_one_has_no_spread() -> None:
    groups = Groups()
    groups.add(rewarded("a", 1000.0, hit=True))
    assert groups.columns()["std"] == [0.0]
