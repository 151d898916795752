"""An estimate is a plugin's word: it is asked for, never believed to be free, and judged afterwards."""

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from lensd_api import Analyzer, Cost, InvalidParams
from lensd_server.engine.costs import Shares, estimate
from lensd_server.engine.events import RegisteredAnalyzer


class Estimated(Analyzer):
    """Answers what its test tells it to."""

    name = "estimated"

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer

    def estimate(self, params: Any, card: Any) -> Cost:
        return self.answer()

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        return
        yield


def raising(error: BaseException) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


def asked(tiny: Any, answer: Callable[[], Any]) -> Cost:
    registered = RegisteredAnalyzer(Estimated(answer), "estimated", "tests", "1")
    return estimate(registered, None, tiny("llama").card)


def test_an_estimate_is_taken_as_it_is(tiny: Any) -> None:
    assert asked(tiny, lambda: Cost(12, 34, 5.0)) == Cost(12, 34, 5.0)


def test_nothing_that_holds_a_model_is_free(tiny: Any) -> None:
    assert asked(tiny, Cost) == Cost(tokens=1)


@pytest.mark.parametrize(
    "answer",
    [
        lambda: None,
        lambda: 7,
        lambda: Cost(tokens=-1),
        lambda: Cost(bytes=-1),
        lambda: Cost(tokens=1.5),  # pyright: ignore[reportArgumentType]
        lambda: Cost(seconds=float("nan")),
        lambda: Cost(seconds=float("inf")),
        raising(KeyError("a secret")),
        raising(SystemExit(3)),
    ],
)
def test_what_is_no_estimate_counts_as_a_cautious_one(tiny: Any, answer: Callable[[], Any]) -> None:
    assert asked(tiny, answer) == Cost(tokens=tiny("llama").card.anatomy.context_length)


def test_an_analyzer_may_refuse_while_it_estimates(tiny: Any) -> None:
    with pytest.raises(InvalidParams):
        asked(tiny, raising(InvalidParams.field("prompt", "is too long")))


def test_of_an_analyzer_never_seen_nothing_is_known() -> None:
    assert Shares().least("any") == 0.0


def test_the_most_frugal_of_the_last_analyses_counts() -> None:
    shares = Shares()
    for tokens in (10, 4, 8):
        shares.note("a", Cost(tokens=10), tokens)
    assert shares.least("a") == 0.4
    for _ in range(16):
        shares.note("a", Cost(tokens=10), 30)
    assert shares.least("a") == 1.0
    assert shares.least("b") == 0.0
