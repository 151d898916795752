"""Waiting for room in a model's queue, for analyses that would lose an item by being refused."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from lensd_api.errors import CallerShareTaken, QueueFull

P = ParamSpec("P")
T = TypeVar("T")

#: Room may come long before what was predicted.
_LONGEST_PAUSE_S = 2.0


async def patiently(ask: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """``await ask(*args, **kwargs)``, such as ``model.forward``, again for as long as it finds no room.

    That is while others fill the model's queue, or rows of the same caller, which may be this analysis's own,
    their share of it. The analysis's deadline and a cancel end it like any other wait.
    """
    while True:
        try:
            return await ask(*args, **kwargs)
        except (QueueFull, CallerShareTaken) as full:
            pause_s = full.retry_after_s
        await asyncio.sleep(_LONGEST_PAUSE_S if pause_s is None else min(pause_s, _LONGEST_PAUSE_S))
