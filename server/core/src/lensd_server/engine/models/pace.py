"""Whether models displace each other faster than is good for anybody."""

from collections import deque

#: Over how long evictions are counted, and how long a warning holds its peace.
WINDOW_S = 60.0


class EvictionPace:
    """Counts evictions of the last minute. Used under the residency's lock."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._times: deque[float] = deque()
        self._warned_at: float | None = None

    def note(self, now: float) -> None:
        """A model was evicted."""
        self._times.append(now)

    def recent(self, now: float) -> int:
        """Evictions within the last minute."""
        while self._times and self._times[0] <= now - WINDOW_S:
            self._times.popleft()
        return len(self._times)

    def too_fast(self, now: float) -> bool:
        """Whether there were more than the limit."""
        return self.recent(now) > self._limit

    def is_worth_a_warning(self, now: float) -> bool:
        """Whether it is too fast and nobody was told for a minute; whoever asks must tell."""
        if not self.too_fast(now):
            return False
        if self._warned_at is not None and now - self._warned_at < WINDOW_S:
            return False
        self._warned_at = now
        return True

    def describe(self, now: float) -> str:
        """For callers and the log."""
        return (
            f"{self.recent(now)} models were evicted within {WINDOW_S:.0f} s to make room for each other "
            f"(a warning comes above {self._limit}): most of the time goes to loading; raise limits.memory_bytes, "
            "use smaller models or a smaller dtype, or send requests of one model together"
        )
