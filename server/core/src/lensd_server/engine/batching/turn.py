"""Whose turn it is on a device.

Two forwards, or a forward and other tensor work, on the same cores take twice as long each: the
threads of one evict the caches and wait at the barriers of the other. So everything heavy on a
CPU takes a turn, first come, first served. On a GPU the forwards of one model and what is trained for its
callers take turns likewise; two models there are left to the GPU's own scheduler.
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
