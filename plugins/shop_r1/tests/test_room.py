"""A request of more rollouts than its caller's share of the queue has room for."""

from lensd_api import Table
from lensd_api.testing import Job
from lensd_server.settings import LimitSettings
from lensd_server.tiny_engine import TinyEngine
from lensd_shop_r1.analyzer import ShopR1
from plugins.shop_r1.tests.rollouts import output, rollout


def test_no_rollout_is_lost_to_the_share_that_its_own_request_fills() -> None:
    items = [rollout(output(f"one {number} two", "terminate"), "terminate") for number in range(40)]
    engine = TinyEngine(("llama",), limits=LimitSettings(max_queued_rows=8))
    try:
        outcome = engine.run(ShopR1(), Job({"items": items}, model="llama"))
    finally:
        engine.close()
    assert outcome.error is None
    rewards = [result for result in outcome.results if isinstance(result, Table) and result.name == "rewards"]
    errors = [error for part in rewards for error in part.columns["error"]]
    assert errors == [""] * 40
