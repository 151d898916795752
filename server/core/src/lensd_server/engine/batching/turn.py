"""Whose turn it is on a device.

Two forwards, or a forward and other tensor work, on the same cores take twice as long each: the
threads of one evict the caches and wait at the barriers of the other. So everything heavy on a
CPU takes a turn, first come, first served. On a GPU the forwards of one model and what is trained for its
callers take turns likewise; two models there are left to the GPU's own scheduler.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from lensd_server.engine.batching.ticket import Ticket


class Turn:
    """A lock that is handed over in order of asking; a plain lock lets its last owner win again.

    Raises RuntimeError on a thread that has it already, which would wait for itself.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._taken = False
        #: The thread that has it, once that goes on.
        self._owner: int | None = None
        #: What calls whoever waits, and since when.
        self._waiting: deque[tuple[threading.Event, float]] = deque()
        self._computing: tuple[Ticket, float] | None = None

    @contextmanager
    def of(self, ticket: Ticket) -> Iterator[None]:
        """Taken for an analysis's own code."""
        with self:
            self._computing = ticket, self._clock()
            try:
                yield
            finally:
                self._computing = None

    @property
    def computes_here(self) -> bool:
        """Whether this thread runs an analysis's own code in the turn."""
        return self._computing is not None and self._owner == threading.get_ident()

    @property
    def computing(self) -> tuple[Ticket, float] | None:
        """The analysis whose own code has it, and since when."""
        return self._computing

    @property
    def holding_up(self) -> tuple[Ticket, float] | None:
        """The same while others wait for the turn, since when they do."""
        with self._lock:
            computing = self._computing
            if computing is None or not self._waiting:
                return None
            ticket, since = computing
            return ticket, max(since, self._waiting[0][1])

    def __enter__(self) -> None:
        with self._lock:
            if self._owner == threading.get_ident():
                raise RuntimeError(
                    "this thread has its device's turn already: a piece of work cannot hold another"
                )
            if not self._taken:
                self._taken, self._owner = True, threading.get_ident()
                return
            called = threading.Event()
            self._waiting.append((called, self._clock()))
        called.wait()
        self._owner = threading.get_ident()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._owner = None
            if self._waiting:
                self._waiting.popleft()[0].set()
            else:
                self._taken = False
