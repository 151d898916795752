"""How long a batch may wait for the callers that the one before it has answered.

Callers that send one request after another fall into two camps: while one is on the device the other
gathers, and every batch is half as large as it could be. Where those just answered are seen to come
back soon, a short wait for them saves a forward. Who is interactive never waits for callers of low priority.

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
        self._urgent = False
        #: The share of the answered rows for which others came within that time; even odds until it is known.
        self._share = 0.5

    def answers(self, rows: int, now: float, *, urgent: bool = True) -> None:
        """A batch has been read; the callers of so many rows are told from now on. ``urgent``: they are
        interactive."""
        if self._answered:
            came = min(1.0, self._back / self._answered)
            self._share += _NEWEST * (came - self._share)
        self._told, self._answered, self._back, self._urgent = now, rows, 0, urgent

    def arrived(self, rows: int, now: float) -> None:
        """So many rows have come."""
        if now - self._told <= self._most_s:
            self._back += rows

    def patience(self, now: float, *, urgent: bool = True) -> float:
        """Seconds that the next batch, for which rows wait already, may still wait for more; 0 for none.

        ``urgent``: some of those rows are interactive.
        """
        if self._share < _LEAST or self._back >= self._answered or (urgent and not self._urgent):
            return 0.0
        return max(0.0, self._told + self._share * self._most_s - now)
