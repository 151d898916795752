"""What the engine reports to whoever measures it: metrics, logs and plugins' hooks.

Observers are called on the engine's own threads, possibly several at once. They must return at
once and be safe to call from any thread; one that raises is logged and otherwise ignored.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from lensd_api.hookspecs import AnalysisRecord

#: How an analysis can end, and a load.
OUTCOMES = (
    "ok",
    "client_error",
    "rejected",
    "cancelled",
    "deadline",
    "plugin_error",
    "device_oom",
    "internal",
)
#: A load is cancelled when nobody wants the model any more.
LOAD_OUTCOMES = ("ok", "failed", "cancelled")
#: Why a model made room: nobody wanted it, or somebody waited for it but it was another's turn.
EVICTION_REASONS = ("idle", "turn")


@dataclass(frozen=True, slots=True)
class BatchRecord:
    """One batch that ran. ``seconds`` is the whole turn on the device, reduces included."""

    model: str
    rows: int
    #: Without padding.
    tokens: int
    #: Rows times the longest row.
    padded_tokens: int
    seconds: float
    #: Of beginnings that several rows share, read once here; and what the other rows were spared.
    prefix_tokens: int = 0
    reused_tokens: int = 0
    #: Span of each row whose request is traced (:mod:`lensd_server.engine.tracing`), and its wait in seconds.
    traced: tuple[tuple[Any, float], ...] = ()


class BatchObserver(Protocol):
    """Told what the batchers do."""

    def batch_ran(self, batch: BatchRecord) -> None:
        """A batch left the device."""
        ...

    def queue_changed(self, model: str, rows: int, tokens: int) -> None:
        """So many more rows and tokens wait for ``model`` than before, or fewer where they are negative.

        A change, since several queues of one model may report at the same time.
        """
        ...

    def cancel_took(self, model: str, seconds: float) -> None:
        """From the cancel of an analysis until the device no longer works for it."""
        ...


class AnalysisObserver(Protocol):
    """Told of analyses; each ends with one of :data:`OUTCOMES`."""

    def started(self, analysis: AnalysisRecord) -> None:
        """An analysis was admitted."""
        ...

    def finished(self, analysis: AnalysisRecord) -> None:
        """An analysis ended, or was refused before it started.

        ``analyzer`` and ``model`` are empty when the request named none that exists, so that
        both are bounded by what is installed.
        """
        ...


class LoadObserver(Protocol):
    """Told of loads."""

    def load_finished(self, model: str, outcome: str, seconds: float) -> None:
        """A load ended; ``outcome`` is one of :data:`LOAD_OUTCOMES`.

        ``seconds`` does not count waiting for memory.
        """
        ...

    def evicted(self, model: str, reason: str) -> None:
        """A model made room for another; ``reason`` is one of :data:`EVICTION_REASONS`."""
        ...


class Observers:
    """Hands what happens to every observer; one that raises is logged and harms nobody."""

    def __init__(
        self,
        analyses: Sequence[AnalysisObserver] = (),
        batches: Sequence[BatchObserver] = (),
        loads: Sequence[LoadObserver] = (),
    ) -> None:
        self._analyses, self._batches, self._loads = tuple(analyses), tuple(batches), tuple(loads)

    def started(self, analysis: AnalysisRecord) -> None:
        """See :class:`AnalysisObserver`."""
        for observer in self._analyses:
            _tell(observer.started, analysis)

    def finished(self, analysis: AnalysisRecord) -> None:
        """See :class:`AnalysisObserver`."""
        for observer in self._analyses:
            _tell(observer.finished, analysis)

    def batch_ran(self, batch: BatchRecord) -> None:
        """See :class:`BatchObserver`."""
        for observer in self._batches:
            _tell(observer.batch_ran, batch)

    def queue_changed(self, model: str, rows: int, tokens: int) -> None:
        """See :class:`BatchObserver`."""
        for observer in self._batches:
            _tell(observer.queue_changed, model, rows, tokens)

    def cancel_took(self, model: str, seconds: float) -> None:
        """See :class:`BatchObserver`."""
        for observer in self._batches:
            _tell(observer.cancel_took, model, seconds)

    def load_finished(self, model: str, outcome: str, seconds: float) -> None:
        """See :class:`LoadObserver`."""
        for observer in self._loads:
            _tell(observer.load_finished, model, outcome, seconds)

    def evicted(self, model: str, reason: str) -> None:
        """See :class:`LoadObserver`."""
        for observer in self._loads:
            _tell(observer.evicted, model, reason)


def _tell(notice: Callable[..., None], *what: object) -> None:
    try:
        notice(*what)
    except (
        BaseException
    ):  # a plugin's hook, which may even exit, or a metric of ours: never worth an analysis
        structlog.get_logger("lensd.engine").exception("an observer failed")
