"""The one token by which an analysis is known below the executor: whose rows, how urgent, still wanted?

Checked at admission, when a batch is built, between batches and at every call an analyzer makes
into the engine. A ticket is cancelled at most once, from any thread.
"""

import threading
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from lensd_api import Cancelled, DeadlineExceeded
from lensd_server.engine.events import Priority, Usage, caller_of


@dataclass(slots=True, eq=False)
class Ticket:
    """``deadline`` is on ``time.monotonic()``; ``usage`` is written by the engine only."""

    request_id: str = ""
    analyzer: str = ""
    #: The address it came from; empty when nobody knows.
    peer: str = ""
    #: Who sent it, where callers are authenticated.
    identity: str = ""
    priority: Priority = Priority.INTERACTIVE
    deadline: float | None = None
    usage: Usage = field(default_factory=Usage)
    cancelled_at: float | None = None
    #: The span of its request, where that is traced.
    span: Any | None = None
    _error: Callable[[], Cancelled | DeadlineExceeded] | None = None
    _callbacks: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    #: Batches and computations for it that a device is at.
    _on_device: int = 0
    _tell_latency: Callable[[float], None] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def caller(self) -> Hashable:
        """Who takes turns with others: one identity, else one host, else this analysis by itself."""
        return caller_of(self.identity, self.peer) or self

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the results any more."""
        return self._error is not None

    def cancel(self, message: str = "the caller cancelled the analysis") -> bool:
        """Ends the analysis on somebody's wish. False when it had been cancelled before."""
        return self._end(lambda: Cancelled(message))

    def expire(self) -> bool:
        """Ends the analysis because its time is up. False when it had been cancelled before."""
        return self._end(lambda: DeadlineExceeded("the time allowed for this analysis is up"))

    def error(self) -> Cancelled | DeadlineExceeded | None:
        """Why it ended: a fresh error at each call, since several threads may raise it."""
        make = self._error
        return None if make is None else make()

    def expired(self, now: float | None = None) -> bool:
        """Whether its deadline has passed."""
        return self.deadline is not None and (time.monotonic() if now is None else now) >= self.deadline

    def check(self) -> None:
        """Raises Cancelled or DeadlineExceeded when the results are no longer wanted."""
        if not self.cancelled and self.expired():
            self.expire()
        if (error := self.error()) is not None:
            raise error

    def on_cancel(self, callback: Callable[[], None]) -> None:
        """Calls ``callback`` once, on the cancelling thread; at once if that has happened."""
        with self._lock:
            if self._error is None:
                self._callbacks.append(callback)
                return
        callback()

    def forget(self, callback: Callable[[], None]) -> None:
        """Undoes :meth:`on_cancel`."""
        with self._lock:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

    def watch_device(self, tell: Callable[[float], None] | None) -> None:
        """Calls ``tell`` once, if it is cancelled: with the seconds from the cancel until no device works
        for it any more. ``None`` when nobody is to be told."""
        with self._lock:
            self._tell_latency = tell
        self._tell_if_free()

    def enter_device(self) -> None:
        """A device begins to work for it; nothing stops that before :meth:`leave_device`."""
        with self._lock:
            self._on_device += 1

    def leave_device(self) -> None:
        """The device is done with what it was at."""
        with self._lock:
            self._on_device -= 1
        self._tell_if_free()

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Around a piece of work of a device."""
        self.enter_device()
        try:
            yield
        finally:
            self.leave_device()

    def retire(self) -> None:
        """The analysis is over or given up: nobody is to be told any more."""
        with self._lock:
            self._callbacks = []

    def _end(self, make: Callable[[], Cancelled | DeadlineExceeded]) -> bool:
        with self._lock:
            if self._error is not None:
                return False
            self.cancelled_at = time.monotonic()
            self._error = make
            callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()
        self._tell_if_free()
        return True

    def _tell_if_free(self) -> None:
        with self._lock:
            if self.cancelled_at is None or self._on_device:
                return
            tell, self._tell_latency = self._tell_latency, None
        if tell is not None:
            tell(time.monotonic() - self.cancelled_at)
