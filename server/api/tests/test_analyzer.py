"""What counts as an analyzer."""

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from lensd_api import Analyzer, Context, Record, Result
from lensd_api.analyzer import find_flaw, is_async


class Async(Analyzer):
    """Async."""

    name = "async"

    async def analyze(self, params: Any, ctx: Context) -> AsyncIterator[Result]:
        yield Record("r", {})


class Plain(Analyzer):
    """Plain."""

    name = "plain"

    def analyze(self, params: Any, ctx: Any) -> Iterator[Result]:
        yield Record("r", {})


class BadName(Plain):
    name = "Not A Name"


class NoName(Analyzer):
    def analyze(self, params: Any, ctx: Any) -> Iterator[Result]:
        yield Record("r", {})


class BadParams(Plain):
    Params = dict  # type: ignore[assignment]


class Returns(Plain):
    def analyze(self, params: Any, ctx: Any) -> Iterator[Result]:
        return iter(())


class Coroutine(Plain):
    async def analyze(self, params: Any, ctx: Any) -> Any:
        return []


class TooFew(Plain):
    def analyze(self, params: Any) -> Iterator[Result]:  # type: ignore[override]
        yield Record("r", {})


def test_both_kinds_of_generator_are_sound() -> None:
    assert find_flaw(Async()) is None
    assert find_flaw(Plain()) is None
    assert is_async(Async())
    assert not is_async(Plain())


@pytest.mark.parametrize(
    ("analyzer", "word"),
    [
        (object(), "instance"),
        (Plain, "instance"),
        (BadName(), "name"),
        (NoName(), "name"),
        (BadParams(), "Params"),
        (Returns(), "yield"),
        (Coroutine(), "yield"),
        (TooFew(), "params, ctx"),
    ],
)
def test_a_flaw_is_found_and_said(analyzer: object, word: str) -> None:
    flaw = find_flaw(analyzer)
    assert flaw is not None
    assert word in flaw.problem
