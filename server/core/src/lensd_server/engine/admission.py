"""Who is let in, and who is inside.

First an analysis gets a place, which bounds how many there are; then, once its model can tell what it will
take, its cost is counted against that model's bounds. No caller gets more than its share of either.
Invariant: whoever was admitted is counted until :meth:`Admission.leave`, however the analysis ends.
Safe to use from any thread.
"""

import threading
import time
from collections.abc import Callable, Sequence

from lensd_api import CallerShareTaken, Cost, DeadlineExceeded, FailedPrecondition, QueueFull
from lensd_server.engine.batching.batcher import Batcher
from lensd_server.engine.costs import Shares
from lensd_server.engine.running import Analysis
from lensd_server.engine.turnover import LEAST_S, MOST_S, Turnover
from lensd_server.engine.wakeup import Wakeup
from lensd_server.settings import LimitSettings


class Admission:
    """The analyses that run, oldest first. ``limits`` hold for whoever comes now, and may be replaced."""

    def __init__(self, limits: LimitSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits, self._clock = limits, clock
        self._lock = threading.Lock()
        self._inside: list[Analysis] = []
        self._shares = Shares()
        self._turnover = Turnover()
        #: Appended to and removed from on their own loops, copied before use.
        self._waiting_for_end: list[Wakeup] = []

    def admit(self, analysis: Analysis) -> int:
        """Gives ``analysis`` a place; answers how many of its model are ahead. Raises QueueFull,
        and CallerShareTaken."""
        analysis.ticket.check()
        with self._lock:
            own = self._of_caller(analysis, self._inside)
            limit, share = self.limits.max_analyses, self.limits.share(self.limits.max_analyses)
            if len(own) >= share:
                raise _own_share_taken(analysis, share, "analyses", self._turnover.retry_after_s(share))
            if len(self._inside) >= limit:
                what = f"{len(self._inside)} analyses run already"
                raise _taken(what, limit, self._turnover.retry_after_s(limit))
            ahead = sum(other.model == analysis.model for other in self._inside)
            self._inside.append(analysis)
            analysis.admitted = True
        return ahead if analysis.model else 0

    def reserve(self, analysis: Analysis, cost: Cost, batcher: Batcher) -> None:
        """Counts ``cost`` while ``analysis`` runs on the model of ``batcher``.

        Raises FailedPrecondition where it is more than anybody is ever given, QueueFull where there is no
        room now, CallerShareTaken where its caller has its share, DeadlineExceeded where it cannot be done in time.
        """
        bounds = (
            ("tokens", cost.tokens, self.limits.max_admitted_tokens, lambda other: other.tokens),
            ("bytes", cost.bytes, self.limits.max_admitted_bytes, lambda other: other.bytes),
        )
        for unit, needed, limit, _ in bounds:
            if needed > (most := self.limits.share(limit)):
                raise FailedPrecondition(
                    f"this analysis is estimated to take {needed} {unit}, but one caller is never given more "
                    f"than {most}; ask for less at once",
                    reason="OVER_BUDGET",
                    metadata={"unit": unit, "needed": str(needed), "limit": str(most)},
                )
        batcher.check_room()
        self._check_deadline(analysis, cost, batcher)
        with self._lock:
            others = [a for a in self._inside if a.model == analysis.model and a is not analysis]
            own = self._of_caller(analysis, others)
            for unit, needed, limit, of in bounds:
                share = self.limits.share(limit)
                if (taken := sum(of(a.cost) for a in own)) + needed > share:
                    wait_s = _wait_s(own, (taken + needed - share) / taken, batcher)
                    raise _own_share_taken(analysis, share, unit, wait_s)
                if (taken := sum(of(a.cost) for a in others)) + needed > limit:
                    wait_s = _wait_s(others, (taken + needed - limit) / taken, batcher)
                    what = f"analyses of model {analysis.model} that run will take {taken} {unit}, this one {needed}"
                    raise _taken(what, limit, wait_s)
            analysis.cost = cost

    def leave(self, analysis: Analysis) -> None:
        """The analysis is over, whether it was admitted or not."""
        with self._lock:
            if analysis.admitted:
                self._inside.remove(analysis)
                self._turnover.left(self._clock() - analysis.started)
        for wakeup in tuple(self._waiting_for_end):
            wakeup.set()

    def succeeded(self, analysis: Analysis) -> None:
        """The analysis ran to its end: its estimate can be judged."""
        self._shares.note(analysis.analyzer, analysis.cost, analysis.ticket.usage.tokens)

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

    @staticmethod
    def _of_caller(analysis: Analysis, others: Sequence[Analysis]) -> list[Analysis]:
        return [other for other in others if other.ticket.caller == analysis.ticket.caller]

    def _check_deadline(self, analysis: Analysis, cost: Cost, batcher: Batcher) -> None:
        """Refuses what is sure to be late: after rows that are certainly ahead, and with the least that
        analyses like it have needed."""
        ticket = analysis.ticket
        if ticket.deadline is None:
            return
        share = self._shares.least(analysis.analyzer)
        own_s = batcher.seconds(max(1, int(share * cost.tokens))) + share * cost.seconds
        needed_s = batcher.seconds_ahead(ticket) + own_s
        left_s = ticket.deadline - self._clock()
        if needed_s > left_s:
            raise DeadlineExceeded(
                f"this analysis needs {needed_s:.2f} s at the least, of which it would wait "
                f"{needed_s - own_s:.2f} s, but its deadline is in {max(0.0, left_s):.2f} s; allow more time",
                reason="DEADLINE_TOO_SHORT",
                metadata={"needed_seconds": f"{needed_s:.3f}", "left_seconds": f"{left_s:.3f}"},
            )


def _wait_s(others: Sequence[Analysis], share: float, batcher: Batcher) -> float:
    """Until ``share`` of what ``others`` were estimated to take is done, at the measured pace."""
    tokens = int(share * sum(other.cost.tokens for other in others))
    return min(MOST_S, max(LEAST_S, batcher.seconds(tokens)))


def _taken(what: str, limit: int, retry_after_s: float) -> QueueFull:
    return QueueFull(
        f"{what} (limit {limit}); try again in {retry_after_s:.1f} s",
        metadata={"limit": str(limit)},
        retry_after_s=retry_after_s,
    )


def _own_share_taken(analysis: Analysis, share: int, unit: str, retry_after_s: float) -> CallerShareTaken:
    return CallerShareTaken(
        caller=analysis.request.caller or "this caller",
        limit=share,
        unit=unit,
        retry_after_s=retry_after_s,
    )
