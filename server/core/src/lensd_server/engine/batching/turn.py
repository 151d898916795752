"""Whose turn it is on the CPU's cores.

Two forwards, or a forward and other tensor work, on the same cores take twice as long each: the
threads of one evict the caches and wait at the barriers of the other. So everything heavy on a
CPU takes a turn, first come, first served.
"""

import threading
from collections import deque
from types import TracebackType


class Turn:
    """A lock that is handed over in order of asking; a plain lock lets its last owner win again."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            called = threading.Event()
            self._waiting.append(called)
        called.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._taken = False


class FreeTurn:
    """For devices that order their own work: taking it never waits."""

    def __enter__(self) -> None:
        """Goes on at once."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to hand over."""
