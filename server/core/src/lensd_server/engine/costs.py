"""What an analysis is expected to take: its analyzer's own estimate, and how such estimates turned out.

An estimate is foreign code: one that fails, or answers nonsense, counts as a cautious one and never as free.
"""

import math
import threading
from collections import deque
from typing import Any

import structlog

from lensd_api import Analyzer, Cost, FailedPrecondition, InvalidRequest, ModelCard, NotFound
from lensd_server.engine.events import RegisteredAnalyzer

_log = structlog.get_logger("lensd.engine")

#: Analyses of an analyzer by which its estimates are judged.
_REMEMBERED = 16


def estimate(registered: RegisteredAnalyzer, params: Any, card: ModelCard) -> Cost:
    """The analyzer's estimate. Raises what the analyzer refuses for good; nothing else."""
    analyzer = registered.analyzer
    try:
        cost: object = analyzer.estimate(params, card)
        if isinstance(cost, Cost) and _is_sound(cost):
            # Whoever holds a model uses it.
            return Cost(max(1, cost.tokens), cost.bytes, cost.seconds)
        _log.warning("an estimate is no cost", analyzer=registered.name, estimate=repr(cost)[:200])
    except (InvalidRequest, FailedPrecondition, NotFound):
        raise  # what analyzing would say as well
    except BaseException:  # whatever a plugin raises, SystemExit included
        _log.warning("an estimate failed", analyzer=registered.name, exc_info=True)
    return Analyzer.estimate(analyzer, params, card)


def _is_sound(cost: Cost) -> bool:
    numbers: tuple[object, ...] = (cost.tokens, cost.bytes)
    return (
        all(isinstance(number, int) and number >= 0 for number in numbers)
        and math.isfinite(cost.seconds)
        and cost.seconds >= 0.0
    )


class Shares:
    """Which share of its estimate an analysis needs at least, by analyzer: estimates err upwards, some by
    far, so that they alone say nothing of a deadline. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seen: dict[str, deque[float]] = {}

    def least(self, analyzer: str) -> float:
        """The smallest share that one of the last analyses needed; 0 for an analyzer never seen."""
        with self._lock:
            return min(self._seen.get(analyzer, (0.0,)))

    def note(self, analyzer: str, cost: Cost, tokens: int) -> None:
        """An analysis that was to take ``cost`` was done after ``tokens``."""
        if cost.tokens:
            with self._lock:
                self._seen.setdefault(analyzer, deque(maxlen=_REMEMBERED)).append(
                    min(1.0, tokens / cost.tokens)
                )
