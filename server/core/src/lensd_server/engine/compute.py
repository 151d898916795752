"""Runs what analyzers compute beside forwards, one piece at a time, in its turn.

On the CPU heavy work of all analyses shares one thread: on the same cores two pieces at once finish later than
one after the other, and torch keeps a pool of threads for every thread that uses it.
"""

import contextvars
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.device import Device

T = TypeVar("T")


class ComputeThread:
    """One daemon thread that takes its device's turn for each piece of work.

    ``at_end`` is called once, when nothing runs after :meth:`close` any more.
    """

    def __init__(self, device: Device, at_end: Callable[[], None] = lambda: None) -> None:
        self.device, self._at_end = device, at_end
        self._changed = threading.Condition()
        self._jobs: deque[tuple[Future[Any], Callable[[], Any], Ticket]] = deque()
        self._closed = False
        self._thread: threading.Thread | None = None

    def submit(self, ticket: Ticket, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Queues ``fn`` with the caller's context variables; dropped when nobody wants it any more.

        Raises RuntimeError after :meth:`close`.
        """
        job = partial(contextvars.copy_context().run, fn, *args, **kwargs)
        future: Future[T] = Future()
        with self._changed:
            if self._closed:
                raise RuntimeError("computed outside of its workspace")
            self._jobs.append((future, job, ticket))
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="lensd-compute", daemon=True)
                self._thread.start()
            self._changed.notify()
        return future

    def close(self) -> None:
        """Ends the thread after the piece it is at; what waits is cancelled."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            left, self._jobs = self._jobs, deque()
            self._changed.notify()
        for future, _, _ in left:
            future.cancel()
        if self._thread is None:
            self._at_end()

    def _serve(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    break
                future, job, ticket = self._jobs.popleft()
            self._run(future, job, ticket)
            # Nothing of one analysis is kept until the next one comes.
            del future, job, ticket
        self._at_end()

    def _run(self, future: Future[Any], job: Callable[[], Any], ticket: Ticket) -> None:
        with self.device.turn, ticket.on_device():
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
