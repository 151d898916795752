"""How soon a place becomes free, from how long places were kept; and who was told to come back for one.

Those turned away are told to come one after the other, each when a place should be free, rather than
all together.
"""

from collections import deque

#: Stays over which the mean is taken.
_REMEMBERED = 32
#: What anybody is told at least and at most.
LEAST_S, MOST_S = 0.1, 60.0
#: What anybody is told before the first place became free: how long those inside will stay cannot be known yet.
UNKNOWN_S = 1.0


class Turnover:
    """Not safe by itself: whoever counts the places holds a lock around every call, or is on one loop."""

    def __init__(self) -> None:
        self._stays: deque[float] = deque(maxlen=_REMEMBERED)
        self._promised = 0

    def left(self, stayed_s: float) -> None:
        """A place became free."""
        self._stays.append(stayed_s)
        self._promised = max(0, self._promised - 1)

    def retry_after_s(self, places: int) -> float:
        """When the next one who is turned away should come back; all of the ``places`` are taken."""
        # Whoever was told may not come: nobody is sent away for longer than all places take.
        self._promised = min(places, self._promised + 1)
        if not self._stays:
            return UNKNOWN_S
        each = sum(self._stays) / len(self._stays) / places
        return min(MOST_S, max(LEAST_S, self._promised * each))
