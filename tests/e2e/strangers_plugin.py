"""A stranger's plugin, as end-to-end tests install it: well-behaved and hostile analyzers."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

from lensd_api import (
    Analyzer,
    BaseParams,
    BlockingContext,
    Capture,
    Context,
    Example,
    Record,
    Reduce,
    Requirements,
    Result,
    Row,
    Site,
    Table,
    Tensor,
    hookimpl,
)


class Loop(Analyzer):
    """Loops in Python for the given time, holding the interpreter as much as it can."""

    name = "loop"
    examples = (Example("short", "a short loop", {"seconds": 0.01}),)

    class Params(BaseParams):
        seconds: float

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(model=False)

    def analyze(self, params: Params, ctx: BlockingContext) -> Iterator[Result]:
        yield Record("looping", {})
        end, turns = time.monotonic() + params.seconds, 0
        while time.monotonic() < end:
            turns += 1
        yield Record("looped", {"turns": turns})


class Tick(Analyzer):
    """Yields a result every tenth of a second."""

    name = "tick"
    examples = (Example("two", "two ticks", {"count": 2}),)

    class Params(BaseParams):
        count: int

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(model=False)

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        for index in range(params.count):
            await asyncio.sleep(0.1)
            yield Table("ticks", {"tick": [index]}, last=index + 1 == params.count)


class Wait(Analyzer):
    """Waits until it is cancelled."""

    name = "wait"
    examples = (Example("none", "returns at once", {"forever": False}),)

    class Params(BaseParams):
        forever: bool = True

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        yield Record("waiting", {"model": ctx.model.name})
        if params.forever:
            await asyncio.Event().wait()


class Residual(Analyzer):
    """Returns the final residual stream at every position: a plain look through the primitive."""

    name = "residual"
    examples = (Example("hello", "a few tokens", {"prompt": "hello there"}),)

    class Params(BaseParams):
        prompt: str

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        rows = [Row(ctx.model.encode(params.prompt))]
        (found,) = await ctx.model.forward(rows, Capture(frozenset({Site.FINAL_RESIDUAL}), positions="all"))
        yield Tensor("residual", found[Site.FINAL_RESIDUAL], axes=("pos", "d_model"))


def scribble(stack: Any, model: Any, args: Any = None) -> list[int]:
    """Makes the model say something else from now on."""
    model.unembed.mul_(-2.0)
    return [0] * len(stack.args)


class Scribble(Analyzer):
    """Writes into the weights it is given to read."""

    name = "scribble"
    examples = (Example("none", "leaves them alone", {"write": False}),)

    class Params(BaseParams):
        write: bool = True

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        if params.write:
            rows = [Row(ctx.model.encode("hello"))]
            await ctx.model.forward(rows, Capture(frozenset({Site.FINAL_RESIDUAL}), reduce=Reduce(scribble)))
        yield Record("left", {})


class Big(Analyzer):
    """Returns a table, a tensor and a graph-sized record far beyond one message."""

    name = "big"
    examples = (Example("small", "a few rows", {"rows": 10}),)

    class Params(BaseParams):
        rows: int

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(model=False)

    def analyze(self, params: Params, ctx: BlockingContext) -> Iterator[Result]:
        import torch

        yield Table("rows", {"row": list(range(params.rows)), "text": ["x" * 20] * params.rows})
        yield Tensor("numbers", torch.arange(params.rows, dtype=torch.float64), axes=("row",))


class Block(Analyzer):
    """Sleeps on the loop that all async analyzers share."""

    name = "block"
    examples = (Example("none", "sleeps for no time", {"seconds": 0.0}),)

    class Params(BaseParams):
        seconds: float

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(model=False)

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        yield Record("before", {})
        time.sleep(params.seconds)  # noqa: ASYNC251  that is its fault


class Crash(Analyzer):
    """Raises in the middle."""

    name = "crash"
    examples = (Example("none", "does not crash", {"crash": False}),)

    class Params(BaseParams):
        crash: bool = True

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(model=False)

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        yield Record("before", {})
        if params.crash:
            raise RuntimeError("a secret in the plugin's own words")


@hookimpl
def lensd_analyzers() -> list[Analyzer]:
    return [Loop(), Tick(), Wait(), Residual(), Scribble(), Big(), Block(), Crash()]
