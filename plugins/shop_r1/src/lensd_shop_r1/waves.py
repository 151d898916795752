"""Runs many rows, a bounded number at a time, and hands the results on in order."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

#: Rows, and tokens, of one analysis that wait or run: enough to fill a GPU's batches, far fewer than
#: the queue holds.
MAX_ROWS = 256
MAX_TOKENS = 131_072


async def in_order(
    items: Iterable[T], size: Callable[[T], int], work: Callable[[T], Awaitable[R]]
) -> AsyncGenerator[R]:
    """What ``work`` makes of each item, in their order; ``items`` is read only as far as there is room.

    ``size`` is an item's tokens; one larger than all the room runs alone. The first failure ends it;
    leaving it cancels what still runs.
    """
    waiting = iter(items)
    running: deque[tuple[int, asyncio.Future[R]]] = deque()
    held = 0
    following = next(waiting, None)
    try:
        while following is not None or running:
            while following is not None and _fits(len(running), held, size(following)):
                tokens = size(following)
                running.append((tokens, asyncio.ensure_future(work(following))))
                held += tokens
                # Laying out an item takes time: let the first rows run, and others of the loop, meanwhile.
                await asyncio.sleep(0)
                following = next(waiting, None)
            tokens, first = running[0]  # stays among the running, to be cancelled with them
            await asyncio.wait([first])
            running.popleft()
            held -= tokens
            yield first.result()
    finally:
        # The caller is gone, or a row failed: what still runs must not outlive the analysis.
        for _, task in running:
            task.cancel()
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)


def _fits(rows: int, held: int, tokens: int) -> bool:
    return not rows or (rows < MAX_ROWS and held + tokens <= MAX_TOKENS)
