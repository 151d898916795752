"""What one caller may use, so that it cannot use up what is there for all.

Analyses at once are refused beyond the bound. Rows, tokens and bytes are known only when they have been
used: a caller may start an analysis while it has any left of this minute's, and what it uses beyond
is owed, so that over time it gets its share and no more.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from lensd_api.errors import QuotaExceeded
from lensd_api.hookspecs import AnalysisRecord
from lensd_server.engine.turnover import Turnover
from lensd_server.settings import CallerQuota, QuotaSettings

#: Callers that are remembered: without authentication any number of hosts may come.
_MAX_ACCOUNTS = 4096
_UNBOUNDED = CallerQuota()


@dataclass(slots=True)
class _Allowance:
    """Refills evenly up to one minute's worth. ``left`` below zero is owed."""

    per_minute: int
    left: float
    at: float

    def _refill(self, now: float) -> None:
        self.left = min(self.per_minute, self.left + (now - self.at) * self.per_minute / 60)
        self.at = now

    def spend(self, amount: float, now: float) -> None:
        self._refill(now)
        self.left -= amount

    def wait_s(self, now: float) -> float:
        """Until there is at least one left; 0 when there is."""
        self._refill(now)
        return 0.0 if self.left > 0 else (1 - self.left) * 60 / self.per_minute


class _Account:
    """One caller's use. ``running`` are its analyses."""

    def __init__(self, bounds: CallerQuota, now: float) -> None:
        self.running = 0
        self.turnover = Turnover()
        self.bind(bounds, now)

    def bind(self, bounds: CallerQuota, now: float) -> None:
        self.bounds = bounds
        self.rows = _allowance(bounds.rows_per_minute, now)
        self.tokens = _allowance(bounds.tokens_per_minute, now)
        self.bytes = _allowance(bounds.bytes_per_minute, now)


class Quotas:
    """The accounts of all callers. Safe to use from any thread.

    It observes the engine (:class:`lensd_server.engine.observers.AnalysisObserver`), since rows and tokens
    count however an analysis ends.
    """

    def __init__(self, settings: QuotaSettings, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._accounts: OrderedDict[str, _Account] = OrderedDict()
        self.take_over(settings)

    def take_over(self, settings: QuotaSettings) -> None:
        """The bounds are those of ``settings`` from now on; whoever's are others begins a new minute."""
        with self._lock:
            self._everybody = settings.of("")
            self._own = {name: settings.of(name) for name in settings.callers}
            for caller, account in self._accounts.items():
                if account.bounds != (bounds := self._bounds(caller)):
                    account.bind(bounds, self._clock())

    def bounds(self, caller: str) -> CallerQuota:
        """What ``caller`` may use."""
        with self._lock:
            return self._bounds(caller)

    @contextmanager
    def analysis(self, caller: str) -> Iterator[None]:
        """Around one analysis of ``caller``. Raises QuotaExceeded."""
        with self._lock:
            account = self._account(caller)
            if account is not None:
                self._check(caller, account)
                account.running += 1
        began = self._clock()
        try:
            yield
        finally:
            if account is not None:
                with self._lock:
                    account.running -= 1
                    account.turnover.left(self._clock() - began)

    def check_bytes(self, caller: str) -> None:
        """Raises QuotaExceeded when ``caller`` has no bytes left."""
        with self._lock:
            if (account := self._account(caller)) is not None:
                self._check_allowance(caller, account.bytes, "bytes_per_minute", "bytes a minute")

    def spend_bytes(self, caller: str, amount: int) -> None:
        """``caller`` sent or got ``amount`` bytes."""
        with self._lock:
            account = self._account(caller)
            if account is not None and account.bytes is not None:
                account.bytes.spend(amount, self._clock())

    def started(self, analysis: AnalysisRecord) -> None:
        """Counted in :meth:`analysis`."""

    def finished(self, analysis: AnalysisRecord) -> None:
        """Its rows and tokens are its caller's, whatever came of it."""
        usage = analysis.usage or {}
        with self._lock:
            account = self._account(analysis.caller)
            if account is None:
                return
            for allowance, amount in (
                (account.rows, usage.get("rows", 0)),
                (account.tokens, usage.get("tokens", 0)),
            ):
                if allowance is not None:
                    allowance.spend(amount, self._clock())

    def _account(self, caller: str) -> _Account | None:
        """That of ``caller``; ``None`` where nothing bounds it."""
        account = self._accounts.get(caller)
        if account is None:
            bounds = self._bounds(caller)
            if bounds == _UNBOUNDED:
                return None
            self._make_room()
            account = self._accounts[caller] = _Account(bounds, self._clock())
        self._accounts.move_to_end(caller)
        return account

    def _bounds(self, caller: str) -> CallerQuota:
        return self._own.get(caller, self._everybody)

    def _make_room(self) -> None:
        """Forgets whoever has been away longest."""
        if len(self._accounts) >= _MAX_ACCOUNTS:
            idle = next((name for name, account in self._accounts.items() if not account.running), None)
            if idle is not None:
                del self._accounts[idle]

    def _check(self, caller: str, account: _Account) -> None:
        limit = account.bounds.max_analyses
        if limit is not None and account.running >= limit:
            raise QuotaExceeded(
                caller=caller,
                quota="max_analyses",
                limit=limit,
                unit="analyses at once",
                retry_after_s=account.turnover.retry_after_s(limit),
            )
        self._check_allowance(caller, account.rows, "rows_per_minute", "rows a minute")
        self._check_allowance(caller, account.tokens, "tokens_per_minute", "tokens a minute")
        self._check_allowance(caller, account.bytes, "bytes_per_minute", "bytes a minute")

    def _check_allowance(self, caller: str, allowance: _Allowance | None, quota: str, unit: str) -> None:
        if allowance is not None and (wait_s := allowance.wait_s(self._clock())) > 0:
            raise QuotaExceeded(
                caller=caller, quota=quota, limit=allowance.per_minute, unit=unit, retry_after_s=wait_s
            )


def _allowance(per_minute: int | None, now: float) -> _Allowance | None:
    return None if per_minute is None else _Allowance(per_minute, per_minute, now)
