"""The suite every analyzer passes, on the real engine with tiny real models."""

import pytest

from lensd_api import ItemError, Record, Table
from lensd_api.testing import AnalyzerConformance, Engine, Job
from lensd_shop_r1 import Rollout, ShopR1, ShopR1Params, waves
from plugins.shop_r1.tests.rollouts import MIXED, output, rollout


class TestShopR1(AnalyzerConformance):
    analyzer = ShopR1()
    # The examples are real sessions, longer than the tiny models' context.
    requests = (
        {"items": MIXED},
        {"items": MIXED[:2], "self_certainty": "kl_p_u", "token_certainty": True, "logprobs": True},
        {"items": MIXED, "self_certainty": "off", "parse": "lenient"},
    )


@pytest.mark.parametrize("certainty", ["kl_u_p", "off"])
def test_a_bad_item_fails_alone(lensd_engine: Engine, certainty: str) -> None:
    model = lensd_engine.models[0] if certainty != "off" else ""
    outcome = lensd_engine.run(ShopR1(), Job({"items": MIXED, "self_certainty": certainty}, model))
    assert outcome.error is None
    failed = {r.item: r.error.reason for r in outcome.results if isinstance(r, ItemError)}
    assert failed == {"5": "INVALID_PARAMS"} | ({"4": "CONTEXT_EXCEEDED"} if model else {})
    rows = [r for r in outcome.results if isinstance(r, Table) and r.name == "rewards"]
    totals = [value for part in rows for value in part.columns["total"]]
    assert [str(i) for i, total in enumerate(totals) if total is None] == sorted(failed)
    assert [part.last for part in rows] == [False, False, True]
    (summary,) = [r for r in outcome.results if isinstance(r, Record)]
    assert summary.values["failed"] == len(failed)
    assert summary.values["items"] == len(MIXED)


def test_every_item_may_fail(lensd_engine: Engine) -> None:
    items = [rollout(output("a", "terminate"), "scroll"), {}]
    outcome = lensd_engine.run(ShopR1(), Job({"items": items, "self_certainty": "off"}))
    assert outcome.error is None
    (summary,) = [r for r in outcome.results if isinstance(r, Record)]
    assert summary.values["failed"] == 2
    assert summary.values["mean_total"] is None


def test_every_example_holds_rollouts_only() -> None:
    for example in ShopR1.examples:
        params = ShopR1Params.parse(example.params)
        assert all(isinstance(item, Rollout) for item in params.items)


def test_ten_thousand_items_come_in_small_parts(lensd_engine: Engine) -> None:
    items = [MIXED[i % 4] for i in range(10_000)]
    outcome = lensd_engine.run(ShopR1(), Job({"items": items, "self_certainty": "off"}))
    assert outcome.error is None
    parts = [r for r in outcome.results if isinstance(r, Table)]
    sizes = [len(part.columns["item"]) for part in parts]
    assert sizes[:5] == [1, 2, 4, 8, 16]
    assert max(sizes) == 16
    assert [n for part in parts for n in part.columns["item"]] == list(range(10_000))
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]


def test_more_rows_than_may_wait_are_scored(lensd_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waves, "MAX_ROWS", 3)
    outcome = lensd_engine.run(ShopR1(), Job({"items": MIXED * 4}, lensd_engine.models[0]))
    rewards = [r for r in outcome.results if isinstance(r, Table)]
    assert sum(len(part.columns["item"]) for part in rewards) == 4 * len(MIXED)
    certain = [value for part in rewards for value in part.columns["self_certainty"]]
    for i in range(0, len(certain), len(MIXED)):
        assert certain[i : i + len(MIXED)] == [
            None if value is None else pytest.approx(value, rel=1e-5) for value in certain[: len(MIXED)]
        ]


def test_a_megabyte_of_rationale_fails_its_item_only(lensd_engine: Engine) -> None:
    long = rollout(output("One, two " * 110_000, "terminate"), "terminate")
    outcome = lensd_engine.run(ShopR1(), Job({"items": [long, MIXED[0]]}, lensd_engine.models[0]))
    assert outcome.error is None
    failed = {r.item: r.error.reason for r in outcome.results if isinstance(r, ItemError)}
    assert failed == {"0": "CONTEXT_EXCEEDED"}
