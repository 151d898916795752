"""What the process does about a plugin whose analyzer fails again and again, or writes into a model."""

import threading
import time
from collections import deque
from collections.abc import Callable

from lensd_api.hookspecs import AnalysisRecord
from lensd_server.plugins import AnalyzerRegistry
from lensd_server.settings import PluginSettings


class CrashingAnalyzers:
    """Quarantines the plugin of an analyzer that failed so often in a row, within so long.

    It observes the engine (:class:`lensd_server.engine.observers.AnalysisObserver`). A success starts
    the count anew, and where callers are known it takes two of them: one that has found an input
    which an analyzer cannot stand must not be able to switch it off for the others.
    """

    def __init__(
        self,
        registry: AnalyzerRegistry,
        settings: PluginSettings,
        *,
        callers_are_known: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry, self._clock = registry, clock
        self._limit, self._window_s = settings.max_failures, settings.failure_window_s
        self._callers_needed = 2 if callers_are_known else 1
        self._lock = threading.Lock()
        #: When and for whom each analyzer failed since it last worked; the newest ones.
        self._failures: dict[str, deque[tuple[float, str]]] = {}

    def started(self, analysis: AnalysisRecord) -> None:
        """How it ends is what counts."""

    def finished(self, analysis: AnalysisRecord) -> None:
        """Counts failures of the analyzer's own making; what callers did wrong is none."""
        if self._limit is None or analysis.outcome not in ("ok", "plugin_error"):
            return
        with self._lock:
            if analysis.outcome == "ok":
                self._failures.pop(analysis.analyzer, None)
                return
            failures = self._failures.setdefault(analysis.analyzer, deque())
            now = self._clock()
            failures.append((now, analysis.caller))
            while failures[0][0] < now - self._window_s:
                failures.popleft()
            callers = {caller for _, caller in failures}
            over = len(failures) >= self._limit and len(callers) >= self._callers_needed
            # One caller's failures must not push those of another out of a bounded memory.
            while len(failures) > max(self._limit, 2) and len(callers) == 1:
                failures.popleft()
            count = len(failures)
            if over:
                del self._failures[analysis.analyzer]
        if over and (distribution := self._registry.distribution_of(analysis.analyzer)) is not None:
            self._registry.quarantine(
                distribution,
                f"analyzer {analysis.analyzer} failed {count} times in a row within {self._window_s:.0f} s; "
                "the log has the errors",
            )


class WritingAnalyzers:
    """Quarantines the plugin of an analyzer that wrote into a model's weights: once is enough, whoever asked."""

    def __init__(self, registry: AnalyzerRegistry) -> None:
        self._registry = registry

    def __call__(self, analyzer: str, model: str) -> None:
        """See :class:`lensd_server.engine.models.residency.Residency`."""
        if (distribution := self._registry.distribution_of(analyzer)) is not None:
            problem = f"analyzer {analyzer} wrote into the weights of model {model}"
            self._registry.quarantine(distribution, problem)
