"""Whether new work is let in, and how much is still inside."""

import asyncio
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from lensd_api.errors import Draining

#: When a drained server's clients may try again: a restart should be over by then.
RETRY_AFTER_S = 5.0


class Gate:
    """Open until :meth:`close`; what is inside then may finish."""

    def __init__(self) -> None:
        self._inside = self._streams = 0
        #: Whether what is inside is being ended rather than awaited.
        self.cut = False
        self._closed = asyncio.Event()
        self._empty = asyncio.Event()
        self._empty.set()
        #: When somebody came or went last.
        self._stirred = -math.inf

    @property
    def draining(self) -> bool:
        """Whether new work is refused."""
        return self._closed.is_set()

    @property
    def is_empty(self) -> bool:
        """Whether :meth:`empty` returns at once."""
        return self._empty.is_set()

    @property
    def inside(self) -> int:
        """Pieces of work that are running."""
        return self._inside

    def close(self) -> None:
        """Refuses new work from now on."""
        if not self.draining:
            self._stirred = time.monotonic()
        self._closed.set()

    def check(self) -> None:
        """Raises Draining once the gate is closed."""
        if self.draining:
            self._stirred = time.monotonic()
            raise self.refusal()

    def refusal(self) -> Draining:
        """What is told to those who come too late, or did not finish in time."""
        return Draining("the server is shutting down; try again", retry_after_s=RETRY_AFTER_S)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Counts one piece of work. Raises Draining once the gate is closed."""
        self.check()
        self._inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._inside -= 1
            self._left()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Around a stream that may still have answers to send when no work is left; it ends by itself
        once the gate is closed."""
        self._streams += 1
        self._empty.clear()
        try:
            yield
        finally:
            self._streams -= 1
            self._left()

    def _left(self) -> None:
        self._stirred = time.monotonic()
        if not (self._inside or self._streams):
            self._empty.set()

    async def closed(self) -> None:
        """Returns when new work is refused."""
        await self._closed.wait()

    async def empty(self) -> None:
        """Returns when nothing is inside, and all that it answered is sent."""
        await self._empty.wait()

    async def quiet(self, seconds: float) -> None:
        """Returns when nobody has come or gone for ``seconds``."""
        while (left := self._stirred + seconds - time.monotonic()) > 0:  # noqa: ASYNC110  silence has no event
            await asyncio.sleep(left)
