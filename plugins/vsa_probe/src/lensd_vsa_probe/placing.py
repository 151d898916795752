"""Where encoders are trained, and how much memory that takes."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

from lensd_api import Context, Exhausted, Workspace

#: ``model``: the model's device; ``auto``: there if its memory allows, else on the CPU.
Place = Literal["auto", "cpu", "model"]

#: Copies of the weights: themselves, their gradients and AdamW's two moments; one more of the best.
_WEIGHTS, _BEST = 4, 1
#: Values that a step keeps of a row: of each of three blocks what its parts write, and of the logits.
_BLOCKS, _OF_BLOCK, _OF_LOGITS = 3, 8, 6


@asynccontextmanager
async def place_to_train(ctx: Context, wanted: Place, size_bytes: int) -> AsyncGenerator[Workspace, None]:
    """A workspace of ``size_bytes`` where it is ``wanted``.

    Raises Exhausted (``NO_ROOM``) for ``model`` without room; ``auto`` then warns and takes the CPU.
    """
    async with AsyncExitStack() as stack:
        if wanted == "cpu":
            work = await stack.enter_async_context(ctx.workspace(size_bytes, device="cpu"))
        else:
            try:
                work = await stack.enter_async_context(ctx.workspace(size_bytes))
            except Exhausted as full:
                if wanted == "model":
                    raise
                ctx.warn("TRAINED_ON_CPU", f"encoders are trained on the CPU: {full.message}")
                work = await stack.enter_async_context(ctx.workspace(size_bytes, device="cpu"))
        yield work


def training_bytes(
    *, rows: int, d_in: int, width: int, dim: int, batch: int, keeps_best: bool, validating: int
) -> int:
    """Most bytes that training one encoder on ``rows`` states of ``d_in`` takes at once, all in fp32;
    ``validating`` of the rows are looked at together after each epoch."""
    weights = (d_in + 1) * width + 2 * (width + 1) * width + (width + 1) * dim + 6 * width
    at_once = max(min(batch, rows), validating)
    values = (
        weights * (_WEIGHTS + (_BEST if keeps_best else 0))
        + rows * (d_in + dim)
        + at_once * (d_in + _BLOCKS * _OF_BLOCK * width + _OF_LOGITS * dim)
    )
    return 4 * values
