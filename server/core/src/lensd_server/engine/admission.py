"""Who is let in, and who is inside.

Invariant: whoever was admitted is counted until :meth:`Admission.leave`, however the analysis ends.
Safe to use from any thread.
"""

import threading
import time

from lensd_api import QueueFull
from lensd_server.engine.running import Analysis
from lensd_server.engine.wakeup import Wakeup
from lensd_server.settings import LimitSettings


class Admission:
    """The analyses that run, oldest first, within ``limits``."""

    def __init__(self, limits: LimitSettings) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._inside: list[Analysis] = []
        #: Appended to and removed from on their own loops, copied before use.
        self._waiting_for_end: list[Wakeup] = []

    def admit(self, analysis: Analysis) -> int:
        """Counts ``analysis`` as running; answers how many of its model are ahead. Raises QueueFull."""
        analysis.ticket.check()
        with self._lock:
            if len(self._inside) >= self._limits.max_analyses:
                raise QueueFull(
                    f"{len(self._inside)} analyses run already (limit {self._limits.max_analyses}); "
                    "try again in a second",
                    metadata={"limit": str(self._limits.max_analyses)},
                    retry_after_s=1.0,
                )
            ahead = sum(other.model == analysis.model for other in self._inside)
            self._inside.append(analysis)
            analysis.admitted = True
        return ahead if analysis.model else 0

    def leave(self, analysis: Analysis) -> None:
        """The analysis is over, whether it was admitted or not."""
        with self._lock:
            if analysis.admitted:
                self._inside.remove(analysis)
        for wakeup in tuple(self._waiting_for_end):
            wakeup.set()

    def inside(self) -> list[Analysis]:
        """Who is inside, oldest first."""
        with self._lock:
            return list(self._inside)

    async def empty(self, timeout_s: float | None = None) -> bool:
        """Waits until nobody is inside; False when that took longer than ``timeout_s``."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        wakeup = Wakeup()
        self._waiting_for_end.append(wakeup)
        try:
            while self._inside:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    return False
                await wakeup.wait(left)
            return True
        finally:
            self._waiting_for_end.remove(wakeup)
