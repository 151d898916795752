"""The metrics that are counted where things happen, in a registry of their own.

What each one means is in :mod:`.definitions`.
"""

import platform
import re
import threading
from collections import Counter as Tally
from collections.abc import Iterable, Iterator

import prometheus_client
from prometheus_client import CollectorRegistry, ProcessCollector

from lensd_api.errors import Exhausted, LensdError, Unavailable
from lensd_api.hookspecs import AnalysisRecord
from lensd_server import __version__
from lensd_server.engine.observers import EVICTION_REASONS, LOAD_OUTCOMES, OUTCOMES, BatchRecord
from lensd_server.telemetry import definitions
from lensd_server.telemetry.exemplars import exemplar

#: Reasons of rejections that are told apart; ours are about a dozen.
MAX_REASONS = 32
_REASON = re.compile(r"[A-Z][A-Z0-9_]{1,62}")


class Metrics:
    """Observes the engine (:mod:`lensd_server.engine.observers`) and the RPC layer.

    Safe to call from any thread.
    """

    def __init__(self) -> None:
        # Process-wide, as the library has it: `_created` series double every histogram for nothing.
        prometheus_client.disable_created_metrics()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._lock = threading.Lock()
        #: Request ids that were admitted and have not ended; callers may use one twice.
        self._admitted: Tally[str] = Tally()
        self._seen: set[tuple[str, str]] = set()
        self._reasons = set(_reasons(Exhausted)) | set(_reasons(Unavailable))
        keep = self.registry
        self.grpc_requests = definitions.GRPC_REQUESTS.instrument(keep)
        self.grpc_duration = definitions.GRPC_DURATION.instrument(keep)
        self.grpc_in_flight = definitions.GRPC_IN_FLIGHT.instrument(keep)
        self.grpc_messages = definitions.GRPC_MESSAGES.instrument(keep)
        self.analyses = definitions.ANALYSES.instrument(keep)
        self.analyses_in_flight = definitions.ANALYSES_IN_FLIGHT.instrument(keep)
        self.analysis_queue = definitions.ANALYSIS_QUEUE.instrument(keep)
        self.analysis_forward = definitions.ANALYSIS_FORWARD.instrument(keep)
        self.analysis_compute = definitions.ANALYSIS_COMPUTE.instrument(keep)
        self.analysis_first_result = definitions.ANALYSIS_FIRST_RESULT.instrument(keep)
        self.analysis_total = definitions.ANALYSIS_TOTAL.instrument(keep)
        self.rejections = definitions.REJECTED.instrument(keep)
        self.cancel_latency = definitions.CANCEL_LATENCY.instrument(keep)
        self.queue_rows = definitions.QUEUE_ROWS.instrument(keep)
        self.queue_tokens = definitions.QUEUE_TOKENS.instrument(keep)
        self.batch_rows = definitions.BATCH_ROWS.instrument(keep)
        self.batch_tokens = definitions.BATCH_TOKENS.instrument(keep)
        self.batch_padding = definitions.BATCH_PADDING.instrument(keep)
        self.batch_seconds = definitions.BATCH_DURATION.instrument(keep)
        self.rows_shared = definitions.ROWS_SHARED.instrument(keep)
        self.prefix_tokens = definitions.PREFIX_TOKENS.instrument(keep)
        self.model_loads = definitions.MODEL_LOADS.instrument(keep)
        self.model_load_seconds = definitions.MODEL_LOAD.instrument(keep)
        self.model_evictions = definitions.MODEL_EVICTIONS.instrument(keep)
        self.event_loop_lag = definitions.EVENT_LOOP_LAG.instrument(keep)
        self.event_loop_tasks = definitions.EVENT_LOOP_TASKS.instrument(keep)
        self.draining = definitions.DRAINING.instrument(keep)
        self.config_reloads = definitions.CONFIG_RELOADS.instrument(keep)
        for outcome in ("ok", "refused"):  # there from the start, so that an increase can be seen
            self.config_reloads.labels(outcome)
        self.audit_lost = definitions.AUDIT_LOST.instrument(keep)
        self.build_info = definitions.BUILD_INFO.instrument(keep)
        self.build_info.labels(__version__, platform.python_version()).set(1)

        for reason in self._reasons:
            self.rejections.labels(reason)

    def expect(self, models: Iterable[str]) -> None:
        """Shows zeroes for ``models``.

        Prometheus sees a series that starts at 1 as one that has not grown: the first failure of a
        model would go unnoticed.
        """
        for model in models:
            for outcome in LOAD_OUTCOMES:
                self.model_loads.labels(model, outcome)
            for reason in EVICTION_REASONS:
                self.model_evictions.labels(model, reason)
            for metric in (self.queue_rows, self.queue_tokens, self.rows_shared):
                metric.labels(model)
            for metric in (self.model_load_seconds, self.cancel_latency):
                metric.labels(model)

    def _show_zeroes(self, analyzer: str, model: str) -> None:
        """As :meth:`expect`, when a pair is first seen: all that could be would be too many."""
        for outcome in OUTCOMES:
            self.analyses.labels(analyzer, model, outcome)
        for metric in (
            self.analysis_queue,
            self.analysis_forward,
            self.analysis_compute,
            self.analysis_first_result,
            self.analysis_total,
        ):
            metric.labels(analyzer, model)

    # What the RPC layer reports.

    def rejected(self, reason: str) -> None:
        """An analysis was refused or broken off for ``reason``, which a plugin may have chosen."""
        with self._lock:
            known = reason in self._reasons
            if not known and len(self._reasons) < MAX_REASONS and _REASON.fullmatch(reason):
                self._reasons.add(reason)
                known = True
        self.rejections.labels(reason if known else "OTHER").inc()

    def first_result(self, analyzer: str, model: str, seconds: float) -> None:
        """The first result of an analysis was found."""
        self.analysis_first_result.labels(analyzer, model).observe(seconds, exemplar())

    # What the engine reports, on threads of its own.

    def started(self, analysis: AnalysisRecord) -> None:
        """An analysis was admitted."""
        with self._lock:
            self._admitted[analysis.request_id] += 1
        labels = (analysis.analyzer, analysis.model)
        if labels not in self._seen:
            self._seen.add(labels)
            self._show_zeroes(*labels)
        self.analyses_in_flight.labels(*labels).inc()

    def finished(self, analysis: AnalysisRecord) -> None:
        """An analysis ended, or was refused before it started."""
        labels = (analysis.analyzer, analysis.model)
        self.analyses.labels(*labels, analysis.outcome).inc()
        if not self._leave(analysis.request_id):
            return
        self.analyses_in_flight.labels(*labels).dec()
        usage = analysis.usage or {}
        trace = exemplar()
        self.analysis_total.labels(*labels).observe(analysis.seconds, trace)
        self.analysis_queue.labels(*labels).observe(usage.get("queue_s", 0.0), trace)
        self.analysis_forward.labels(*labels).observe(usage.get("forward_s", 0.0), trace)
        self.analysis_compute.labels(*labels).observe(usage.get("compute_s", 0.0), trace)
        if analysis.model:
            self.rows_shared.labels(analysis.model).inc(usage.get("shared_rows", 0))

    def _leave(self, request_id: str) -> bool:
        """Whether the analysis that ended had been admitted: a refused one took no time worth counting."""
        with self._lock:
            if not self._admitted[request_id]:
                del self._admitted[request_id]
                return False
            self._admitted[request_id] -= 1
            if not self._admitted[request_id]:
                del self._admitted[request_id]
            return True

    def batch_ran(self, batch: BatchRecord) -> None:
        """A batch left the device."""
        self.batch_rows.labels(batch.model).observe(batch.rows)
        self.batch_tokens.labels(batch.model).observe(batch.tokens)
        self.batch_seconds.labels(batch.model).observe(batch.seconds)
        self.prefix_tokens.labels(batch.model, "computed").inc(batch.prefix_tokens)
        self.prefix_tokens.labels(batch.model, "reused").inc(batch.reused_tokens)
        if batch.tokens:
            self.batch_padding.labels(batch.model).observe(batch.padded_tokens / batch.tokens)

    def queue_changed(self, model: str, rows: int, tokens: int) -> None:
        """So many more rows and tokens wait for ``model``, or fewer."""
        self.queue_rows.labels(model).inc(rows)
        self.queue_tokens.labels(model).inc(tokens)

    def cancel_took(self, model: str, seconds: float) -> None:
        """A cancelled analysis left the device."""
        self.cancel_latency.labels(model).observe(seconds)

    def load_finished(self, model: str, outcome: str, seconds: float) -> None:
        """A load ended."""
        self.model_loads.labels(model, outcome).inc()
        if outcome != "cancelled":
            self.model_load_seconds.labels(model).observe(seconds)

    def evicted(self, model: str, reason: str) -> None:
        """A model made room for another."""
        self.model_evictions.labels(model, reason).inc()


def _reasons(kind: type[LensdError]) -> Iterator[str]:
    """The reasons of ``kind`` and of everything that is one."""
    yield kind.reason
    for special in kind.__subclasses__():
        yield from _reasons(special)
