"""What the process does about what cannot be mended from within: an analyzer that does not give way, a
device whose context is broken."""

from collections.abc import Callable

from lensd_server.engine.watchdog import Stuck
from lensd_server.plugins import AnalyzerRegistry


class StuckAnalyzers:
    """Quarantines the plugin; where the shared loop is held, has the process drained as well.

    No thread can be ended from outside: whoever waits behind a held loop is served only by a new
    process.
    """

    def __init__(self, registry: AnalyzerRegistry) -> None:
        self._registry = registry
        self._give_up: Callable[[str], None] | None = None

    def when_held(self, give_up: Callable[[str], None]) -> None:
        """``give_up`` is called with the reason, on any thread."""
        self._give_up = give_up

    def give_up(self, problem: str) -> None:
        """Has the process drained and started anew."""
        if self._give_up is not None:
            self._give_up(problem)

    def __call__(self, found: Stuck) -> None:
        """See :class:`lensd_server.engine.executor.LocalExecutor`."""
        name = f"analyzer {found.analyzer}" if found.analyzer else "something"
        done = "held up all others" if found.holds_others else "went on after it was cancelled"
        problem = f"{name} {done} for {found.seconds:.0f} s"
        if found.analysis is not None:
            self._registry.quarantine(found.analysis.distribution, problem, for_good=found.holds_others)
        if found.holds_others:
            self.give_up(problem)
