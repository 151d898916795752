"""Reaches an event loop from any thread."""

import asyncio
from collections.abc import Callable
from typing import Any


def post(loop: asyncio.AbstractEventLoop, callback: Callable[..., Any], *args: Any) -> None:
    """Calls ``callback`` on ``loop`` soon; nothing happens when the loop is closed already."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        # Nobody waits on a closed loop any more.
        if not loop.is_closed():
            raise


class Wakeup:
    """An event that belongs to the loop it was made on and can be set from anywhere."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._event = asyncio.Event()
        #: Whether the loop has been told and has not come to it yet: to tell it once more would change nothing.
        self._told = False

    def set(self) -> None:
        """Wakes the waiter, now or when it next waits."""
        if not self._told:
            self._told = True
            post(self._loop, self._wake)

    async def wait(self, timeout_s: float | None = None) -> None:
        """Returns when set, or when the time is up."""
        if timeout_s is None:
            await self._event.wait()
        elif not self._event.is_set():
            # A timer that sets the event is cheaper than a task around the wait.
            timer = self._loop.call_later(max(0.0, timeout_s), self._event.set)
            try:
                await self._event.wait()
            finally:
                timer.cancel()
        self._event.clear()

    def _wake(self) -> None:
        self._told = False
        self._event.set()
