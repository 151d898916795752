"""The reward function for TRL: what it sends, in which order it answers, what it tries again."""

import logging
import pickle
from typing import Any

import grpc
import pytest

import lensd_client as L
from clients.python.tests.reward_server import RewardServer
from lensd_client.rollouts import text_of
from lensd_client.trl import MAX_REQUEST_CHARS, ShopR1Reward

CLICK = {"type": "click", "name": "buy", "text": None}
EXHAUSTED, GONE = grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def server(fake: Any) -> RewardServer:
    fake.many = RewardServer()
    return fake.many


@pytest.fixture
def pauses() -> list[float]:
    return []


@pytest.fixture
def reward(fake: Any, server: RewardServer, pauses: list[float]) -> Any:
    made = ShopR1Reward(fake.target, items_per_request=2, max_in_flight=2, attempts=3, sleep=pauses.append)
    yield made
    made.close()


def test_a_step_of_texts_is_answered_in_order(reward: ShopR1Reward, server: RewardServer) -> None:
    outputs = ["a" * n for n in range(1, 8)]
    totals = reward(prompts=["p"] * 7, completions=outputs, completion_ids=[[1]] * 7, reference=[CLICK] * 7)
    assert totals == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert server.streams == 1
    assert sorted(len(start["items"]) for start in server.starts) == [1, 2, 2, 2]
    assert server.starts[0]["items"][0] == {
        "context": "p",
        "output": "a",
        "reference": {"type": "click", "name": "buy"},
    }


def test_conversations_are_sent_as_messages(reward: ShopR1Reward, server: RewardServer) -> None:
    prompt = [
        {"role": "system", "content": "You shop."},
        {"role": "user", "content": [{"type": "text", "text": "Buy "}, {"type": "text", "text": "it"}]},
    ]
    completion = [{"role": "assistant", "content": "abc"}]
    assert reward(prompts=[prompt], completions=[completion], reference=['{"type": "terminate"}']) == [3.0]
    assert server.starts[0]["items"] == [
        {
            "messages": [
                {"role": "system", "content": "You shop."},
                {"role": "user", "content": "Buy it"},
            ],
            "output": "abc",
            "reference": {"type": "terminate"},
        }
    ]


def test_parameters_and_model_are_passed_on(fake: Any, server: RewardServer) -> None:
    reward = ShopR1Reward(fake.target, model="tiny", params={"alpha": 0.25}, reference="truth")
    assert reward(prompts=["p"], completions=["abc"], truth=[CLICK], other=["ignored"]) == [3.0]
    assert (server.starts[0]["model"], server.starts[0]["alpha"]) == ("tiny", 0.25)
    reward.close()


def test_an_item_without_reward_is_none_and_said(
    reward: ShopR1Reward, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "lensd_client.trl"):
        assert reward(prompts=["p"] * 2, completions=["bad", "ab"], reference=[CLICK] * 2) == [None, 2.0]
    assert "1 of 2 completions have no reward: CONTEXT_EXCEEDED (1)" in caplog.text


def test_means_of_components_go_to_the_trainers_metrics(reward: ShopR1Reward) -> None:
    logged: dict[str, float] = {}
    reward(
        prompts=["p"] * 3,
        completions=["bad", "ab", "abcd"],
        reference=[CLICK] * 3,
        log_metric=logged.__setitem__,
    )
    assert logged["shop_r1/total"] == 3.0
    assert set(logged) >= {"shop_r1/format", "shop_r1/self_certainty"}


def test_only_what_was_refused_is_sent_again(
    reward: ShopR1Reward, server: RewardServer, pauses: list[float]
) -> None:
    server.refusals = [(EXHAUSTED, "QUEUE_FULL", 1.5)]
    assert reward(prompts=["p"] * 4, completions=["a", "ab", "abc", "abcd"], reference=[CLICK] * 4) == [
        1,
        2,
        3,
        4,
    ]
    assert pauses == [1.5]
    assert (server.streams, len(server.starts)) == (2, 3)


def test_pauses_grow_and_end_with_the_servers_own_error(
    reward: ShopR1Reward, server: RewardServer, pauses: list[float]
) -> None:
    server.refusals = [(GONE, "DRAINING", None)] * 3
    with pytest.raises(L.Unavailable) as refused:
        reward(prompts=["p"], completions=["a"], reference=[CLICK])
    assert refused.value.reason == "DRAINING"
    assert pauses == [0.5, 1.0]


@pytest.mark.parametrize("reason", ["TOO_LARGE", "DEVICE_OOM"])
def test_what_will_never_work_is_not_tried_again(
    reward: ShopR1Reward, server: RewardServer, pauses: list[float], reason: str
) -> None:
    server.refusals = [(EXHAUSTED, reason, None)]
    with pytest.raises(L.ResourceExhausted):
        reward(prompts=["p"], completions=["a"], reference=[CLICK])
    assert pauses == []


def test_a_server_that_is_not_there_is_tried_again_and_named(pauses: list[float]) -> None:
    reward = ShopR1Reward("127.0.0.1:1", attempts=2, sleep=pauses.append)
    with pytest.raises(L.ServerUnavailable, match=r"127\.0\.0\.1:1"):
        reward(prompts=["p"], completions=["a"], reference=[CLICK])
    assert len(pauses) == 1
    reward.close()


def test_long_outputs_are_spread_over_requests(fake: Any, server: RewardServer) -> None:
    reward = ShopR1Reward(fake.target, items_per_request=100)
    long = "x" * (MAX_REQUEST_CHARS // 2)
    assert reward(prompts=["p"] * 3, completions=[long] * 3, reference=[CLICK] * 3) == [len(long)] * 3
    assert [len(start["items"]) for start in server.starts] == [1, 1, 1]
    reward.close()


def test_a_missing_column_is_named(reward: ShopR1Reward) -> None:
    with pytest.raises(ValueError, match="no column 'reference'; it has answer"):
        reward(prompts=["p"], completions=["a"], answer=["x"])


def test_an_image_is_refused() -> None:
    with pytest.raises(TypeError, match="'image'"):
        text_of([{"role": "assistant", "content": [{"type": "image"}]}])


def test_it_travels_to_other_processes_without_its_connection(reward: ShopR1Reward, fake: Any) -> None:
    reward(prompts=["p"], completions=["a"], reference=[CLICK])
    plain = ShopR1Reward(fake.target)
    plain(prompts=["p"], completions=["a"], reference=[CLICK])
    copy = pickle.loads(pickle.dumps(plain))
    assert copy(prompts=["p"], completions=["abc"], reference=[CLICK]) == [3.0]
    copy.close()
    plain.close()


@pytest.mark.parametrize("wrong", [{"items_per_request": 0}, {"max_in_flight": 0}, {"attempts": 0}])
def test_numbers_below_one_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ShopR1Reward(**wrong)  # type: ignore[arg-type]
