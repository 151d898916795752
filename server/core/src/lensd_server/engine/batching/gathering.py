"""How long a batch may wait for the callers that the one before it has answered.

Callers that send one request after another fall into two camps: while one is on the device the other
gathers, and every batch is half as large as it could be. Where those just answered are seen to come
back soon, a wait shorter than the fixed part of a forward saves a whole one.

Not safe by itself: the batcher holds its lock around every call.
"""

#: How much of what the latest batch has shown goes into what is expected.
_NEWEST = 0.25
#: Where a smaller share of callers comes back in time, no batch waits for them.
_LEAST = 0.25


class Gathering:
    """Learns from all batches, also from those that did not wait. Times are on the batcher's clock."""

    def __init__(self, most_s: float) -> None:
        """``most_s``: how long it may pay to wait, at most."""
        self._most_s = most_s
        self._told = float("-inf")
        self._answered = self._back = 0
        #: The share of the answered rows for which others came within that time; even odds until it is known.
        self.share = 0.5

    def answers(self, rows: int, now: float) -> None:
        """A batch has been read; the callers of so many rows are told from now on."""
        if self._answered:
            came = min(1.0, self._back / self._answered)
            self.share += _NEWEST * (came - self.share)
        self._told, self._answered, self._back = now, rows, 0

    def arrived(self, rows: int, now: float) -> None:
        """So many rows have come."""
        if now - self._told <= self._most_s:
            self._back += rows

    def patience(self, now: float) -> float:
        """Seconds that the next batch, for which rows wait already, may still wait for more; 0 for none."""
        if self.share < _LEAST or self._back >= self._answered:
            return 0.0
        return max(0.0, self._told + self.share * self._most_s - now)
