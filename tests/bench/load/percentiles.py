"""Percentiles of any number of values in bounded memory, to one part in a hundred."""

from math import floor, log

_STEP = log(1.01)


class Percentiles:
    """Counts positive values in buckets of one per cent; the extremes are exact."""

    def __init__(self) -> None:
        self.count = 0
        self.largest = 0.0
        self._buckets: dict[int, int] = {}

    def add(self, value: float) -> None:
        """Counts one value."""
        bucket = floor(log(max(value, 1e-9)) / _STEP)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.largest = max(self.largest, value)

    def at(self, share: float) -> float:
        """The value that ``share`` of all are not above; 0 when there are none."""
        if not self.count:
            return 0.0
        wanted, seen = share * self.count, 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                # The middle of the bucket: half a per cent off at most.
                return min(self.largest, 1.01 ** (bucket + 0.5))
        return self.largest
