"""Runs what analyzers compute beside forwards, one piece at a time, in its turn.

On the CPU heavy work of all analyses shares one thread: on the same cores two pieces at once finish later than
one after the other, and torch keeps a pool of threads for every thread that uses it.
"""

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.device import Device

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Piece:
    """Work of one analysis that waits for its turn."""

    ticket: Ticket
    future: Future[Any]
    job: Callable[[], Any]
    since: float


class ComputeThread:
    """One daemon thread that takes its device's turn for each piece of work.

    ``at_end`` is called once, when nothing runs after :meth:`close` any more.
    """

    def __init__(
        self,
        device: Device,
        at_end: Callable[[], None] = lambda: None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.device, self._at_end, self._clock = device, at_end, clock
        self._changed = threading.Condition()
        self._waiting: deque[_Piece] = deque()
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, ticket: Ticket, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Queues ``fn`` with the caller's context variables; dropped when nobody wants it any more.

        Raises RuntimeError after :meth:`close`, and within a piece of work.
        """
        if threading.current_thread() is self._thread:
            raise RuntimeError("a piece of work would wait for itself here: it cannot compute another")
        job = partial(contextvars.copy_context().run, fn, *args, **kwargs)
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("computed outside of its workspace")
            self._waiting.append(_Piece(ticket, future, job, self._clock()))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="lensd-compute", daemon=True)
                self._thread.start()
            self._changed.notify()
        return future

    @property
    def holding_up(self) -> tuple[Ticket, float] | None:
        """The analysis whose piece has the turn while pieces of others wait here, and since when they do."""
        with self._changed:
            if (computing := self.device.turn.computing) is None:
                return None
            ticket, since = computing
            others = (piece for piece in self._waiting if piece.ticket is not ticket)
            first = next((piece for piece in others if not piece.ticket.cancelled), None)
            return None if first is None else (ticket, max(since, first.since))

    def close(self) -> None:
        """Ends the thread after the piece it is at; what waits is cancelled."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            left, self._waiting = self._waiting, deque()
            self._changed.notify()
        for piece in left:
            piece.future.cancel()
        if self._thread is None:
            self._at_end()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if not self._waiting:
                    break
                piece = self._waiting.popleft()
            self._run(piece.future, piece.job, piece.ticket)
            # Nothing of one analysis is kept until the next one comes.
            del piece
        self._at_end()

    def _run(self, future: Future[Any], job: Callable[[], Any], ticket: Ticket) -> None:
        with self.device.turn.of(ticket), ticket.on_device():
            if ticket.cancelled:  # while it waited for its turn
                future.cancel()
            if not future.set_running_or_notify_cancel():
                return
            try:
                with self.device.completing():
                    result = job()
            except BaseException as error:  # an analyzer's own code; it gets its error back
                future.set_exception(error)
            else:
                future.set_result(result)
