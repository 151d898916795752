"""Learning rates as pure functions of the step, so that a resumed fit needs no scheduler's state."""

import math
from typing import Literal

Schedule = Literal["one_cycle", "warm_restarts"]

#: One cycle: the share of steps that the rate rises, and what it starts and ends with.
RISE, FIRST_DIVISOR, LAST_DIVISOR = 0.3, 25.0, 25e4
#: Warm restarts: epochs of the first period, growth of each next one, share its peak keeps.
PERIOD, GROWTH, KEPT = 100, 2, 0.9


def one_cycle(step: int, steps: int, peak: float) -> float:
    """Rises by a cosine to ``peak``, then falls to almost nothing at the last of ``steps``.

    Source: Smith & Topin 2018, with cosine sides.
    """
    rising = max(1.0, RISE * steps)
    if step < rising:
        return _cosine(peak / FIRST_DIVISOR, peak, step / rising)
    return _cosine(peak, peak / LAST_DIVISOR, (step - rising) / max(1.0, steps - rising))


def warm_restarts(epoch: float, peak: float) -> float:
    """Falls by a cosine to zero over a period, then starts again lower, for twice as long.

    Source: Loshchilov & Hutter 2017; the falling peak from arXiv 2509.25045.
    """
    period = float(PERIOD)
    while epoch >= period:
        epoch, period, peak = epoch - period, period * GROWTH, peak * KEPT
    return _cosine(peak, 0.0, epoch / period)


def _cosine(first: float, last: float, share: float) -> float:
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))
