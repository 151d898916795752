"""Every metric of the daemon, defined once, in a registry of its own.

Labels are bounded by what is configured and installed, never by request text.
"""

import platform
import threading
from collections import Counter as Tally
from collections.abc import Sequence

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from lensd_api.hookspecs import AnalysisRecord
from lensd_server import __version__
from lensd_server.engine.observers import BatchRecord

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
_LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_RATIO = (0.01, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75)


class Metrics:
    """Observes the engine (:mod:`lensd_server.engine.observers`) and the RPC layer.

    Safe to call from any thread.
    """

    def __init__(self) -> None:
        # Process-wide, as the library has it: `_created` series double every histogram for nothing.
        prometheus_client.disable_created_metrics()
        self.registry = CollectorRegistry()
        self._lock = threading.Lock()
        #: Request ids that were admitted and have not ended; callers may use one twice.
        self._admitted: Tally[str] = Tally()
        self._define_grpc()
        self._define_analyses()
        self._define_models()
        self._define_process()

    def _define_grpc(self) -> None:
        method = ("service", "method")
        self.grpc_requests = self._counter("lensd_grpc_requests", "Finished gRPC calls.", (*method, "code"))
        self.grpc_duration = self._histogram(
            "lensd_grpc_request_duration_seconds", "From the start of a gRPC call to its end.", method
        )
        self.grpc_in_flight = self._gauge("lensd_grpc_requests_in_flight", "gRPC calls in progress.", method)
        self.grpc_messages = self._counter(
            "lensd_grpc_stream_messages",
            "Messages on streaming gRPC calls, seen from the server.",
            (*method, "direction"),
        )

    def _define_analyses(self) -> None:
        labels = ("analyzer", "model")
        self.analyses = self._counter("lensd_analyses", "Finished analyses.", (*labels, "outcome"))
        self.analyses_in_flight = self._gauge(
            "lensd_analyses_in_flight", "Admitted analyses that have not ended.", labels
        )
        self.analysis_queue = self._histogram(
            "lensd_analysis_queue_seconds", "Waiting for admission, model and batches.", labels
        )
        self.analysis_forward = self._histogram(
            "lensd_analysis_forward_seconds", "Forward passes that held rows of the analysis.", labels
        )
        self.analysis_compute = self._histogram(
            "lensd_analysis_compute_seconds", "Everything else the analyzer did.", labels
        )
        self.analysis_first_result = self._histogram(
            "lensd_analysis_first_result_seconds", "From the request to the first result.", labels
        )
        self.analysis_total = self._histogram(
            "lensd_analysis_total_seconds", "From admission to the end of the analysis.", labels
        )
        self.rejections = self._counter(
            "lensd_rejected", "Analyses refused or broken off for lack of room or time.", ("reason",)
        )
        self.cancel_latency = self._histogram(
            "lensd_cancel_latency_seconds",
            "From the cancel of an analysis until the device no longer works for it.",
            ("model",),
        )

    def _define_models(self) -> None:
        model = ("model",)
        self.queue_rows = self._gauge("lensd_queue_rows", "Rows waiting for a model.", model)
        self.queue_tokens = self._gauge("lensd_queue_tokens", "Tokens waiting for a model.", model)
        self.batch_rows = self._histogram("lensd_batch_rows", "Rows in a batch.", model, _ROWS)
        self.batch_tokens = self._histogram(
            "lensd_batch_tokens", "Tokens in a batch, without padding.", model, _TOKENS
        )
        self.batch_padding = self._histogram(
            "lensd_batch_padding_ratio", "Share of a batch that is padding.", model, _RATIO
        )
        self.batch_seconds = self._histogram(
            "lensd_batch_duration_seconds", "A batch's turn on the device.", model
        )
        self.rows_shared = self._counter(
            "lensd_rows_shared", "Rows answered by another row of the same batch.", model
        )
        self.model_loads = self._counter("lensd_model_loads", "Finished loads.", ("model", "outcome"))
        self.model_load_seconds = self._histogram("lensd_model_load_seconds", "Duration of a load.", model)

    def _define_process(self) -> None:
        self.event_loop_lag = self._histogram(
            "lensd_event_loop_lag_seconds", "How late the event loop wakes up.", (), _LAG_SECONDS
        )
        self.draining = self._gauge("lensd_draining", "1 while the daemon is shutting down.", ())
        self.build_info = self._gauge(
            "lensd_build_info", "Always 1; the labels say what runs.", ("version", "python")
        )
        self.build_info.labels(__version__, platform.python_version()).set(1)

    def _counter(self, name: str, text: str, labels: Sequence[str]) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, labels: Sequence[str]) -> Gauge:
        return Gauge(name, text, labels, registry=self.registry)

    def _histogram(
        self, name: str, text: str, labels: Sequence[str], buckets: Sequence[float] = _SECONDS
    ) -> Histogram:
        return Histogram(name, text, labels, registry=self.registry, buckets=buckets)

    # What the RPC layer reports.

    def rejected(self, reason: str) -> None:
        """An analysis was refused or broken off for ``reason``, which only the server's code sets."""
        self.rejections.labels(reason).inc()

    def first_result(self, analyzer: str, model: str, seconds: float) -> None:
        """The first result of an analysis was found."""
        self.analysis_first_result.labels(analyzer, model).observe(seconds)

    # What the engine reports, on threads of its own.

    def started(self, analysis: AnalysisRecord) -> None:
        """An analysis was admitted."""
        with self._lock:
            self._admitted[analysis.request_id] += 1
        self.analyses_in_flight.labels(analysis.analyzer, analysis.model).inc()

    def finished(self, analysis: AnalysisRecord) -> None:
        """An analysis ended, or was refused before it started."""
        labels = (analysis.analyzer, analysis.model)
        self.analyses.labels(*labels, analysis.outcome).inc()
        if not self._leave(analysis.request_id):
            return
        self.analyses_in_flight.labels(*labels).dec()
        usage = analysis.usage or {}
        self.analysis_total.labels(*labels).observe(analysis.seconds)
        self.analysis_queue.labels(*labels).observe(usage.get("queue_s", 0.0))
        self.analysis_forward.labels(*labels).observe(usage.get("forward_s", 0.0))
        self.analysis_compute.labels(*labels).observe(usage.get("compute_s", 0.0))
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
        if batch.padded_tokens:
            self.batch_padding.labels(batch.model).observe(1 - batch.tokens / batch.padded_tokens)

    def queue_changed(self, model: str, rows: int, tokens: int) -> None:
        """What waits for ``model`` now."""
        self.queue_rows.labels(model).set(rows)
        self.queue_tokens.labels(model).set(tokens)

    def cancel_took(self, model: str, seconds: float) -> None:
        """A cancelled analysis left the device."""
        self.cancel_latency.labels(model).observe(seconds)

    def load_finished(self, model: str, outcome: str, seconds: float) -> None:
        """A load ended."""
        self.model_loads.labels(model, outcome).inc()
        self.model_load_seconds.labels(model).observe(seconds)
