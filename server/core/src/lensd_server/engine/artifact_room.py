"""How many bytes all artifacts may take together, so that no caller can fill the disk or the store.

What is there is counted now and then, not at every write: a folder may be large and a store far away, and
others may write to either.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lensd_api import Exhausted

#: How long a count holds, corrected by what this process writes and removes meanwhile.
COUNTED_FOR_S = 60.0


class ArtifactRoom:
    """``count`` says how many bytes are there. Safe to use from any thread."""

    def __init__(
        self, max_bytes: int | None, count: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._max_bytes, self._count, self._clock = max_bytes, count, clock
        self._lock = threading.Lock()
        self._taken = 0
        #: Bytes that are being written, of which a count may see some or none.
        self._writing = 0
        self._counted_at = float("-inf")

    @contextmanager
    def take(self, name: str, size: int) -> Iterator[None]:
        """Around the writing of ``size`` bytes. Raises Exhausted when there is no room for them, and what the
        count does."""
        if self._max_bytes is None:
            yield
            return
        with self._lock:
            self._check(name, size, self._max_bytes)
            self._taken += size
            self._writing += size
        written = False
        try:
            yield
            written = True
        finally:
            with self._lock:
                self._writing -= size
                self._taken -= 0 if written else size

    def give_back(self, size: int) -> None:
        """``size`` bytes were removed."""
        with self._lock:
            self._taken -= size

    def _check(self, name: str, size: int, limit: int) -> None:
        if self._clock() - self._counted_at > COUNTED_FOR_S:
            self._taken = self._count() + self._writing
            self._counted_at = self._clock()
        if self._taken + size > limit:
            raise Exhausted(
                f"artifact {name} would take {size} bytes, but all artifacts together take {self._taken} of the "
                f"{limit} that they may (setting limits.max_artifacts_bytes); nothing was stored: delete what "
                "is not needed",
                reason="ARTIFACTS_FULL",
                metadata={"needed": str(size), "taken": str(self._taken), "limit": str(limit)},
            )
