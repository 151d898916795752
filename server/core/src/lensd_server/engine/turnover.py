"""How soon places become free, measured; and who was told to come back for one.

Those turned away are told to come one after the other, each when a place should be free, rather than
all together.
"""

import time
from collections import deque
from collections.abc import Callable

#: Departures over which the rate is taken.
_REMEMBERED = 32
#: What anybody is told at least and at most, and as long as nothing is known.
LEAST_S, MOST_S, UNKNOWN_S = 0.1, 60.0, 1.0


class Turnover:
    """Not safe by itself: admission holds its lock around every call."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left: deque[float] = deque(maxlen=_REMEMBERED)
        self._promised = 0

    def left(self) -> None:
        """A place became free."""
        self._left.append(self._clock())
        self._promised = max(0, self._promised - 1)

    def retry_after_s(self, places: int) -> float:
        """When the next one who is turned away should come back; there are ``places`` in all."""
        # Whoever was told may not come: nobody is sent away for longer than all places take.
        self._promised = min(places, self._promised + 1)
        if len(self._left) < 2:
            return UNKNOWN_S
        each = (self._left[-1] - self._left[0]) / (len(self._left) - 1)
        return min(MOST_S, max(LEAST_S, self._promised * each))
