"""The reward functions for verl: called as its managers call them, against a scripted server."""

import asyncio
import inspect
import pickle
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import MessageToDict

import lensd_client as L
from clients.python.tests.conftest import Script, rich_status
from clients.python.tests.reward_server import RewardServer
from lensd_client.verl import PARTS, NotScored, ShopR1Score

CLICK = {"type": "click", "name": "buy", "text": None}
EXTRA = {"prompt": "Buy tea.", "num_turns": 1, "rollout_reward_scores": {}}


def rewards(total: float | None, error: str = "") -> Script:
    """The stream of one rollout's reward."""
    numbers = {name: [None if total is None else 0.25] for name in (*PARTS, "self_certainty")}
    return Script().accepted().table("rewards", total=[total], error=[error], **numbers).completed()


async def score(reward: ShopR1Score, **changed: Any) -> dict[str, float]:
    """One call as the reward loop makes it: by keyword, with more than is asked for."""
    given = {"data_source": "shop", "solution_str": "abc", "ground_truth": CLICK, "extra_info": EXTRA}
    try:
        return await reward.compute_score(**{**given, **changed}, reward_router_address="x")
    finally:
        await reward.close()


def test_verl_takes_it_for_a_coroutine_function() -> None:
    assert inspect.iscoroutinefunction(ShopR1Score().compute_score)


async def test_a_rollout_is_one_item_with_the_prompt_of_the_dataset(fake: Any) -> None:
    fake.play(rewards(1.5))
    scores = await score(ShopR1Score(fake.target, model="tiny", params={"alpha": 0.25}))
    assert scores == {"score": 1.5, "scored": 1.0, **dict.fromkeys(PARTS, 0.25)}
    (request,) = fake.requests
    assert (request.analyzer, request.model) == ("shop-r1", "tiny")
    assert MessageToDict(request.params) == {
        "alpha": 0.25,
        "items": [
            {"context": "Buy tea.", "output": "abc", "reference": {"type": "click", "name": "buy"}},
        ],
    }


async def test_what_is_refused_for_now_is_sent_again(fake: Any) -> None:
    refusal = rich_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason="QUEUE_FULL", retry_s=3.0)
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    fake.play(
        Script().abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", status=refusal, pushback_ms=-1),
        rewards(2.0),
    )
    assert (await score(ShopR1Score(fake.target, sleep=sleep)))["score"] == 2.0
    assert len(fake.requests) == 2
    assert [3.0 <= pause <= 4.5 for pause in pauses] == [True]


async def test_what_will_never_work_is_not_tried_again(fake: Any) -> None:
    fake.play(Script().abort(grpc.StatusCode.NOT_FOUND, "no such model"))
    with pytest.raises(L.NotFound):
        await score(ShopR1Score(fake.target))
    assert len(fake.requests) == 1


async def test_a_rollout_without_reward_raises_unless_a_number_stands_in(fake: Any) -> None:
    fake.play(rewards(None, "CONTEXT_EXCEEDED"), rewards(None, "CONTEXT_EXCEEDED"))
    with pytest.raises(NotScored, match="CONTEXT_EXCEEDED"):
        await score(ShopR1Score(fake.target))
    scores = await score(ShopR1Score(fake.target, unscored=-1.0))
    assert scores == {"score": -1.0, "scored": 0.0, **dict.fromkeys(PARTS, 0.0)}


@pytest.mark.parametrize("extra", [None, {}, {"index": 3}])
async def test_a_missing_prompt_is_said(extra: Any) -> None:
    with pytest.raises(KeyError, match="extra_info has no 'prompt'"):
        await score(ShopR1Score(), extra_info=extra)


def test_a_batch_goes_over_one_stream(fake: Any) -> None:
    fake.many = server = RewardServer()
    found = ShopR1Score(fake.target, unscored=0.0).compute_scores(
        data_sources=["shop"] * 3,
        solution_strs=["a", "bad", "abc"],
        ground_truths=[CLICK] * 3,
        extra_infos=[EXTRA] * 3,
    )
    assert [(one["score"], one["scored"]) for one in found] == [(1.0, 1.0), (0.0, 0.0), (3.0, 1.0)]
    assert server.streams == 1


def test_each_event_loop_gets_a_connection_and_none_travels(fake: Any) -> None:
    fake.play(rewards(1.0), rewards(2.0))
    reward = ShopR1Score(fake.target)

    async def once() -> float:
        given = {"data_source": "", "solution_str": "a", "ground_truth": CLICK, "extra_info": EXTRA}
        return (await reward.compute_score(**given))["score"]

    assert [asyncio.run(once()), asyncio.run(once())] == [1.0, 2.0]
    assert pickle.loads(pickle.dumps(reward))._client is None
