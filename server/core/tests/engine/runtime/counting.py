"""Analyzers that count tokens, and some that do what their test tells them to."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from lensd_api import (
    AnalysisRecord,
    Analyzer,
    BaseParams,
    Capture,
    Example,
    Requirements,
    Row,
    Site,
    Table,
)

SITES = frozenset({Site.FINAL_RESIDUAL})


class Prompt(BaseParams):
    prompt: str = "The capital"


class Count(Analyzer):
    """Counts tokens."""

    name = "count"
    Params = Prompt
    examples = (Example("one", "it counts", {"prompt": "one"}),)

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        ids = ctx.model.encode(params.prompt)
        yield Table("tokens", {"count": [len(ids)]})


class PlainCount(Count):
    """Counts tokens on a thread."""

    name = "plain-count"

    def analyze(self, params: Any, ctx: Any) -> Iterator[Any]:
        ids = ctx.model.encode(params.prompt)
        ctx.model.forward([Row(ids)], Capture(SITES))
        yield Table("tokens", {"count": [len(ids)]})


class Modelless(Analyzer):
    """Needs no model; does what its test tells it to."""

    name = "modelless"

    def __init__(self, body: Callable[[Any], AsyncIterator[Any]]) -> None:
        self.body = body

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(model=False)

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        async for result in self.body(ctx):
            yield result


class PlainModelless(Modelless):
    """The same on a thread."""

    name = "plain-modelless"

    def analyze(self, params: Any, ctx: Any) -> Iterator[Any]:
        yield from self.body(ctx)  # pyright: ignore[reportReturnType]


class Noting:
    """An observer that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, AnalysisRecord]] = []

    def started(self, analysis: AnalysisRecord) -> None:
        self.told.append(("started", analysis))

    def finished(self, analysis: AnalysisRecord) -> None:
        self.told.append(("finished", analysis))
