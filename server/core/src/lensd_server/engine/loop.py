"""The event loop on which async analyzers run: one thread, apart from the loop that serves gRPC."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

from lensd_server.engine.wakeup import post


class AnalysisLoop:
    """A daemon thread with an event loop of its own."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread = threading.Thread(target=self._serve, name="lensd-analyses", daemon=True)
        self._thread.start()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs ``work`` as a task of the loop. From any thread."""
        self._loop.call_soon_threadsafe(self._spawn, work)

    def ask(self, answer: Callable[[], None]) -> None:
        """Calls ``answer`` on the loop as soon as it turns."""
        post(self._loop, answer)

    def running_task(self) -> asyncio.Task[Any] | None:
        """The task whose code is on the loop's thread at this moment."""
        return asyncio.current_task(self._loop)

    def close(self, timeout_s: float | None = None) -> None:
        """Stops the loop; tasks that still run are cancelled first.

        A loop that is held by an analyzer is left behind after ``timeout_s``.
        """
        if self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout_s)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._tasks.discard)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                self._loop.run_until_complete(asyncio.wait(self._tasks, timeout=1.0))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        finally:
            self._loop.close()
