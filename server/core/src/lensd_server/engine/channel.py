"""Carries the events of one analysis from its thread to the loop of whoever reads them.

Bounded in events and in bytes: a producer waits for a slow reader, so that what a client does not
read does not pile up. One result that is larger by itself may wait alone.
Progress is never waited for and never piles up: the newest replaces the one before.
"""

import threading
import time
from collections import deque
from collections.abc import Callable

from lensd_api import LensdError
from lensd_server.engine.events import AnalysisEvent, Found, Progress
from lensd_server.engine.wakeup import Wakeup

#: Events that may wait for the reader, and the bytes of their results: whichever comes first.
CAPACITY = 16
CAPACITY_BYTES = 1024 * 1024


class Ended(Exception):
    """The producer is done and everything has been read."""


class Channel:
    """One producer on any thread, one reader on the loop that made the channel."""

    def __init__(self, capacity: int = CAPACITY, capacity_bytes: int = CAPACITY_BYTES) -> None:
        self._capacity, self._capacity_bytes = capacity, capacity_bytes
        self._lock = threading.Lock()
        self._events: deque[AnalysisEvent] = deque()
        self._bytes = 0
        self._over = False
        self._error: LensdError | None = None
        self._arrived = Wakeup()
        self._space: Callable[[], None] | None = None

    # The producer's side

    async def put(self, event: AnalysisEvent) -> None:
        """Hands ``event`` over, when there is room. Ignored once the channel has ended."""
        if self._offer(event, None):
            return
        room = Wakeup()
        while not self._offer(event, room.set):
            await room.wait()

    def put_blocking(self, event: AnalysisEvent) -> None:
        """The same for a thread."""
        room = threading.Event()
        while not self._offer(event, room.set):
            room.wait()
            room.clear()

    def put_now(self, event: AnalysisEvent) -> None:
        """Hands ``event`` over without waiting; for what is rare, or replaces its like."""
        with self._lock:
            if self._over:
                return
            if isinstance(event, Progress):
                self._events = deque(e for e in self._events if not isinstance(e, Progress))
            self._events.append(event)
        self._arrived.set()

    def end(self, error: LensdError | None = None) -> None:
        """After what is queued the reader sees ``error``, or the end. The first end counts."""
        self._finish(error, keep=True)

    def abort(self, error: LensdError) -> None:
        """The reader sees ``error`` next; what is queued is dropped and no producer waits."""
        self._finish(error, keep=False)

    # The reader's side

    async def next(self, timeout_s: float | None) -> AnalysisEvent | None:
        """The next event; ``None`` when the time is up. Raises Ended, or what the channel ended with."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while (event := self._pop()) is None:
            # A wake-up may be late and belong to an event that has been read: look again.
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return None
            await self._arrived.wait(left)
        return event

    def close(self) -> None:
        """Nobody reads any more."""
        self._finish(None, keep=False)

    def _offer(self, event: AnalysisEvent, when_free: Callable[[], None] | None) -> bool:
        with self._lock:
            if not self._over:
                if self._is_full(event):
                    self._space = when_free
                    return False
                self._events.append(event)
                self._bytes += _size(event)
        self._arrived.set()
        return True

    def _is_full(self, event: AnalysisEvent) -> bool:
        if len(self._events) >= self._capacity:
            return True
        return self._bytes > 0 and self._bytes + _size(event) > self._capacity_bytes

    def _pop(self) -> AnalysisEvent | None:
        with self._lock:
            if self._events:
                event = self._events.popleft()
                self._bytes -= _size(event)
                free, self._space = self._space, None
            elif self._error is not None:
                raise self._error
            elif self._over:
                raise Ended
            else:
                return None
        if free is not None:
            free()
        return event

    def _finish(self, error: LensdError | None, *, keep: bool) -> None:
        with self._lock:
            if not keep:
                self._events.clear()
                self._bytes = 0
            if not self._over:
                self._over, self._error = True, error
            free, self._space = self._space, None
        self._arrived.set()
        if free is not None:
            free()


def _size(event: AnalysisEvent) -> int:
    return event.size_bytes if isinstance(event, Found) else 0
