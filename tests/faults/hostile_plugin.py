"""Analyzers that do what an analyzer must not, and a few that show what is left afterwards."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Literal

import torch

from lensd_api import (
    Analyzer,
    BaseParams,
    BlockingContext,
    Capture,
    Context,
    Example,
    ModelView,
    Record,
    Reduce,
    Requirements,
    Result,
    Row,
    Site,
    Stack,
    Table,
    Tensor,
    hookimpl,
)

_PIECE_BYTES = 64 * 1024 * 1024


class NoModel(Analyzer):
    """What most of these have in common."""

    def requirements(self, params: Any = None) -> Requirements:
        return Requirements(model=False)


class Raises(NoModel):
    """Raises in the middle of its results."""

    name = "raises"
    examples = (Example("none", "raises nothing", {"how": "not"}),)

    class Params(BaseParams):
        how: Literal["error", "exit", "not"]

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        yield Record("before", {})
        if params.how == "error":
            raise RuntimeError("words of the plugin's own")
        if params.how == "exit":
            raise SystemExit(3)


class Nan(NoModel):
    """Finds no numbers."""

    name = "nan"
    examples = (Example("all", "nothing but NaN", {}),)

    class Params(BaseParams):
        pass

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        yield Table("table", {"value": [float("nan"), 1.0]})
        yield Tensor("tensor", torch.tensor([float("nan"), 1.0]), axes=("row",))
        yield Record("record", {"value": float("nan")})


def exhaust(stack: Stack, model: ModelView) -> Sequence[Any]:
    """As torch's allocator does it."""
    raise torch.OutOfMemoryError("tried to allocate more than there is")


def stumble(stack: Stack, model: ModelView) -> Sequence[Any]:
    """A bug on the device thread."""
    raise ValueError("words of the plugin's own")


class Reduces(Analyzer):
    """Fails on the device thread, in the batch it shares with others."""

    name = "reduces"
    examples = ()

    class Params(BaseParams):
        how: Literal["oom", "error"]

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        reduce = Reduce(exhaust if params.how == "oom" else stumble)
        rows = [Row(ctx.model.encode("hello there"))]
        await ctx.model.forward(rows, Capture(frozenset({Site.FINAL_RESIDUAL}), reduce=reduce))
        yield Record("after", {})


class Hoards(NoModel):
    """Allocates until there is no more."""

    name = "hoards"
    examples = ()

    class Params(BaseParams):
        pass

    def analyze(self, params: Params, ctx: BlockingContext) -> Iterator[Result]:
        held: list[torch.Tensor] = []
        yield Record("before", {})
        while not ctx.cancelled:
            held.append(torch.empty(_PIECE_BYTES, dtype=torch.uint8))


class Much(NoModel):
    """Sends far more than anybody reads at once."""

    name = "much"
    examples = (Example("little", "one piece", {"pieces": 1}),)

    class Params(BaseParams):
        pieces: int

    def analyze(self, params: Params, ctx: BlockingContext) -> Iterator[Result]:
        for index in range(params.pieces):
            yield Tensor(f"piece{index}", torch.zeros(1024 * 1024), axes=("element",))


class Waits(NoModel):
    """Waits until it is cancelled."""

    name = "waits"
    examples = ()

    class Params(BaseParams):
        pass

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        yield Record("waiting", {})
        await asyncio.Event().wait()


class Keeps(NoModel):
    """Stores an artifact of the given size."""

    name = "keeps"
    examples = (Example("little", "a small artifact", {"artifact": "small", "size": 10}),)

    class Params(BaseParams):
        artifact: str
        size: int

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        blobs = {"blob": params.artifact[-1:].encode() * params.size}
        info = await ctx.artifacts.store(params.artifact, blobs, {})
        yield Record("kept", {"reference": info.reference, "sha256": info.sha256})


class Opens(NoModel):
    """Reads an artifact back, which checks its digests."""

    name = "opens"
    examples = ()

    class Params(BaseParams):
        artifact: str

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        artifact = await ctx.artifacts.open(params.artifact)
        yield Record(
            "opened", {"size": sum(map(len, artifact.blobs.values())), "sha256": artifact.info.sha256}
        )


class Counts(NoModel):
    """Counts, leaves a checkpoint at every number, and waits at the last if it is told to."""

    name = "counts"
    examples = (Example("three", "to three", {"to": 3}),)

    class Params(BaseParams):
        to: int
        then_wait: bool = False
        name: str = ""

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        start = int((await ctx.checkpoint.load()).get("number", b"0"))
        yield Record("start", {"at": start})
        for number in range(start + 1, params.to + 1):
            await ctx.checkpoint.save({"number": str(number).encode()})
        yield Record("counted", {"to": params.to})
        # It waits only the first time: whoever goes on with it finds the count complete.
        if params.then_wait and start == 0:
            await asyncio.Event().wait()


class Clock(NoModel):
    """Tells what the wall clock says."""

    name = "clock"
    examples = (Example("now", "the time", {}),)

    class Params(BaseParams):
        pass

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        yield Record("clock", {"now": time.time()})


@hookimpl
def lensd_analyzers() -> list[Analyzer]:
    return [
        Raises(), Nan(), Reduces(), Hoards(), Much(), Waits(), Keeps(), Opens(), Counts(), Clock()
    ]  # fmt: skip
