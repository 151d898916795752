"""An analyzer whose kernel breaks the CUDA context of the process it runs in."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

import torch

from lensd_api import (
    Analyzer,
    BaseParams,
    Capture,
    Context,
    ModelView,
    Record,
    Reduce,
    Result,
    Row,
    Site,
    Stack,
    hookimpl,
)


class Breaks(Analyzer):
    """Reads far outside of a tensor."""

    name = "breaks"

    class Params(BaseParams):
        really: bool = True

    async def analyze(self, params: Params, ctx: Context) -> AsyncIterator[Result]:
        capture = Capture(frozenset({Site.FINAL_RESIDUAL}), reduce=Reduce(reading_outside, params.really))
        await ctx.model.forward([Row((5, 6, 7))], capture)
        yield Record("whole", {})


def reading_outside(stack: Stack, view: ModelView) -> Sequence[Any]:
    """An index that no row has: a device-side assert."""
    residual = stack.values[Site.FINAL_RESIDUAL]
    index = torch.full((4,), 10_000_000 if any(stack.args) else 0, device=residual.device)
    picked = residual[index]
    return [picked[:1] for _ in stack.args]


@hookimpl
def lensd_analyzers() -> list[Analyzer]:
    return [Breaks()]
