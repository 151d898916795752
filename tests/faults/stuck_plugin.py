"""Analyzers that never give way, in a distribution of their own: it ends up in quarantine."""

import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from lensd_api import (
    Analyzer,
    BaseParams,
    BlockingContext,
    Capture,
    Context,
    ModelView,
    Record,
    Reduce,
    Requirements,
    Result,
    Row,
    Site,
    Stack,
    hookimpl,
)


class Ignores(Analyzer):
    """A plain generator that does not look whether it was cancelled."""

    name = "ignores"
    examples = ()

    class Params(BaseParams):
        pass

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(model=False)

    def analyze(self, params: Params, ctx: BlockingContext) -> Iterator[Result]:
        yield Record("before", {})
        threading.Event().wait()


class Holds(Analyzer):
    """Blocks the loop that all async analyzers share."""

    name = "holds"
    examples = ()

    class Params(BaseParams):
        pass

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(model=False)

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        yield Record("before", {})
        time.sleep(600)  # noqa: ASYNC251  that is its fault


def hang(stack: Stack, model: ModelView) -> Sequence[Any]:
    """Keeps the device thread for itself."""
    threading.Event().wait()
    return []


class Hangs(Analyzer):
    """Blocks the thread on which all forwards of its model run."""

    name = "hangs"
    examples = ()

    class Params(BaseParams):
        pass

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        yield Record("before", {})
        rows = [Row(ctx.model.encode("hello there"))]
        await ctx.model.forward(rows, Capture(frozenset({Site.FINAL_RESIDUAL}), reduce=Reduce(hang)))


@hookimpl
def lensd_analyzers() -> list[Analyzer]:
    return [Ignores(), Holds(), Hangs()]
