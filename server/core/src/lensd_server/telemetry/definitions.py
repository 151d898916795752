"""Every metric of the daemon: what it is called, what it counts, and by which labels.

The one place for them. The instruments (:mod:`.metrics`), the scrape-time collectors
(:mod:`.collectors`), the table in the README, the dashboards and the alerts are made of these
definitions or checked against them.

To add one: define it below; then either make it an attribute of ``Metrics`` and count where it
happens, or fill its ``family()`` in a collector when it is read at a scrape. A test prints the row
that the README lacks. Labels are bounded by what is configured and installed, or by a closed set in
our own code; request text never becomes one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

#: Units a name may end with; what counts things has none.
UNITS = ("seconds", "bytes", "ratio", "rows", "tokens")

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
_LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
#: 1 is no padding at all.
_PADDING = (1, 1.01, 1.02, 1.05, 1.1, 1.2, 1.35, 1.5, 2, 3, 5)


@dataclass(frozen=True, slots=True)
class Definition:
    """A metric: its name as scraped, its help and the names of its labels."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: ClassVar[str]

    @property
    def unit(self) -> str:
        """What its value is measured in; empty for a plain count."""
        return next((unit for unit in UNITS if self.name.endswith(f"_{unit}")), "")

    @property
    def series(self) -> tuple[str, ...]:
        """Names of its samples in a scrape."""
        return (self.name,)


@dataclass(frozen=True, slots=True)
class CounterDefinition(Definition):
    """Only ever grows; the name ends with ``_total``."""

    kind: ClassVar[str] = "counter"

    def instrument(self, registry: CollectorRegistry) -> Counter:
        """Counted where it happens."""
        return Counter(self.name, self.help, self.labels, registry=registry)

    def family(self) -> CounterMetricFamily:
        """Filled at a scrape."""
        return CounterMetricFamily(self.name, self.help, labels=self.labels)


@dataclass(frozen=True, slots=True)
class GaugeDefinition(Definition):
    """Goes up and down."""

    kind: ClassVar[str] = "gauge"

    def instrument(self, registry: CollectorRegistry) -> Gauge:
        """Set where it happens."""
        return Gauge(self.name, self.help, self.labels, registry=registry, unit=self.unit)

    def family(self) -> GaugeMetricFamily:
        """Filled at a scrape."""
        return GaugeMetricFamily(self.name, self.help, labels=self.labels, unit=self.unit)


@dataclass(frozen=True, slots=True)
class HistogramDefinition(Definition):
    """A distribution."""

    buckets: Sequence[float] = _SECONDS
    kind: ClassVar[str] = "histogram"

    @property
    def series(self) -> tuple[str, ...]:
        """Names of its samples in a scrape."""
        return tuple(f"{self.name}_{suffix}" for suffix in ("bucket", "count", "sum"))

    def instrument(self, registry: CollectorRegistry) -> Histogram:
        """Observed where it happens."""
        return Histogram(
            self.name, self.help, self.labels, registry=registry, unit=self.unit, buckets=self.buckets
        )


# gRPC

_METHOD = ("service", "method")
GRPC_REQUESTS = CounterDefinition("lensd_grpc_requests_total", "Finished gRPC calls.", (*_METHOD, "code"))
GRPC_DURATION = HistogramDefinition(
    "lensd_grpc_request_duration_seconds", "From the start of a gRPC call to its end.", _METHOD
)
GRPC_IN_FLIGHT = GaugeDefinition("lensd_grpc_requests_in_flight", "gRPC calls in progress.", _METHOD)
GRPC_MESSAGES = CounterDefinition(
    "lensd_grpc_stream_messages_total",
    "Messages on streaming gRPC calls, seen from the server.",
    (*_METHOD, "direction"),
)

# Analyses

_ANALYSIS = ("analyzer", "model")
ANALYSES = CounterDefinition("lensd_analyses_total", "Finished analyses.", (*_ANALYSIS, "outcome"))
ANALYSES_IN_FLIGHT = GaugeDefinition(
    "lensd_analyses_in_flight", "Admitted analyses that have not ended.", _ANALYSIS
)
ANALYSIS_QUEUE = HistogramDefinition(
    "lensd_analysis_queue_seconds", "Waiting for admission, model and batches.", _ANALYSIS
)
ANALYSIS_FORWARD = HistogramDefinition(
    "lensd_analysis_forward_seconds", "Forward passes that held rows of the analysis.", _ANALYSIS
)
ANALYSIS_COMPUTE = HistogramDefinition(
    "lensd_analysis_compute_seconds", "Everything else the analyzer did.", _ANALYSIS
)
ANALYSIS_FIRST_RESULT = HistogramDefinition(
    "lensd_analysis_first_result_seconds", "From the request to the first result.", _ANALYSIS
)
ANALYSIS_TOTAL = HistogramDefinition(
    "lensd_analysis_total_seconds", "From admission to the end of the analysis.", _ANALYSIS
)
REJECTED = CounterDefinition(
    "lensd_rejected_total", "Analyses refused or broken off for lack of room or time.", ("reason",)
)
CANCEL_LATENCY = HistogramDefinition(
    "lensd_cancel_latency_seconds",
    "From the cancel of an analysis until the device no longer works for it.",
    ("model",),
)

# Batching

_MODEL = ("model",)
QUEUE_ROWS = GaugeDefinition("lensd_queue_rows", "Rows waiting for a model.", _MODEL)
QUEUE_TOKENS = GaugeDefinition("lensd_queue_tokens", "Tokens waiting for a model.", _MODEL)
BATCH_ROWS = HistogramDefinition("lensd_batch_rows", "Rows in a batch.", _MODEL, _ROWS)
BATCH_TOKENS = HistogramDefinition(
    "lensd_batch_tokens", "Tokens in a batch, without padding.", _MODEL, _TOKENS
)
BATCH_PADDING = HistogramDefinition(
    "lensd_batch_padding_ratio",
    "Tokens of a batch with padding, over those without; 1 is none.",
    _MODEL,
    _PADDING,
)
BATCH_DURATION = HistogramDefinition("lensd_batch_duration_seconds", "A batch's turn on the device.", _MODEL)
ROWS_SHARED = CounterDefinition(
    "lensd_rows_shared_total", "Rows answered by another row of the same batch.", _MODEL
)
PREFIX_TOKENS = CounterDefinition(
    "lensd_prefix_tokens_total",
    "Tokens of beginnings that several rows share: `computed` once, and `reused` instead of computed.",
    ("model", "kind"),
)

# Models

MODEL_LOADS = CounterDefinition(
    "lensd_model_loads_total", "Loads that ended: ok, failed or cancelled.", ("model", "outcome")
)
MODEL_LOAD = HistogramDefinition("lensd_model_load_seconds", "Duration of a load.", _MODEL)
MODEL_EVICTIONS = CounterDefinition(
    "lensd_model_evictions_total",
    "Evictions to make room: idle, or in its turn while others waited for it.",
    ("model", "reason"),
)
MODEL_STATE = GaugeDefinition(
    "lensd_model_state", "1 for the state the model is in: that of its best replica.", ("model", "state")
)
MODEL_REPLICAS = GaugeDefinition("lensd_model_replicas", "Copies of the model that are resident.", _MODEL)
MODEL_RESIDENT = GaugeDefinition(
    "lensd_model_resident_bytes", "Bytes the model's weights occupy, those of all replicas.", _MODEL
)
MODEL_KEPT = GaugeDefinition(
    "lensd_model_kept_bytes",
    "What rows read in steps keep between batches, and tensors that analyzers derived from weights.",
    _MODEL,
)
MODEL_BATCH_TOKENS = GaugeDefinition(
    "lensd_model_batch_tokens",
    "Padded tokens that one batch of the model may hold: as configured, or as many as were measured to pay.",
    _MODEL,
)
MODEL_LEASES = GaugeDefinition("lensd_model_leases", "Analyses that hold the model.", _MODEL)
MODEL_HOOKS = GaugeDefinition(
    "lensd_model_hooks", "Hooks on the model's modules; any that outlive a batch have leaked.", _MODEL
)
MODEL_WAITING = GaugeDefinition(
    "lensd_model_waiting", "Analyses that wait for the model to be loaded.", _MODEL
)
DEVICE_MEMORY = GaugeDefinition(
    "lensd_device_memory_bytes",
    "What models may have (budget), what is set aside for them (reserved), what the process has (used).",
    ("device", "kind"),
)

# Plugins

PLUGIN_INFO = GaugeDefinition(
    "lensd_plugin_info",
    "Always 1; the labels say which plugin is installed and how it is.",
    ("plugin", "distribution", "version", "status"),
)
PLUGIN_ERRORS = CounterDefinition(
    "lensd_plugin_errors_total", "Hooks of the plugin that failed.", ("distribution",)
)

# The process

EVENT_LOOP_LAG = HistogramDefinition(
    "lensd_event_loop_lag_seconds", "How late the event loop wakes up.", (), _LAG_SECONDS
)
EVENT_LOOP_TASKS = GaugeDefinition(
    "lensd_event_loop_tasks",
    "Tasks on the event loop that serves callers; more and more of them have leaked.",
)
DRAINING = GaugeDefinition("lensd_draining", "1 while the daemon is shutting down.")
CONFIG_RELOADS = CounterDefinition(
    "lensd_config_reloads_total", "Times that the configuration was read again.", ("outcome",)
)
AUDIT_LOST = CounterDefinition(
    "lensd_audit_lines_lost_total", "Lines of the audit that could not be written to `auth.audit_file`."
)
CERTIFICATE_EXPIRY = GaugeDefinition(
    "lensd_tls_certificate_expiry_timestamp_seconds",
    "When the certificate that a listener shows expires, in Unix time.",
    ("listener",),
)
BUILD_INFO = GaugeDefinition("lensd_build_info", "Always 1; the labels say what runs.", ("version", "python"))

# The process as the operating system sees it: the library's own names, which other tools know, and
# read by its collector. Only where there is /proc.

PROCESS_CPU = CounterDefinition(
    "process_cpu_seconds_total", "Total user and system CPU time spent in seconds."
)
PROCESS_MEMORY = GaugeDefinition("process_resident_memory_bytes", "Resident memory size in bytes.")
PROCESS_VIRTUAL = GaugeDefinition("process_virtual_memory_bytes", "Virtual memory size in bytes.")
PROCESS_FILES = GaugeDefinition("process_open_fds", "Number of open file descriptors.")
PROCESS_MAX_FILES = GaugeDefinition("process_max_fds", "Maximum number of open file descriptors.")
PROCESS_START = GaugeDefinition(
    "process_start_time_seconds", "Start time of the process since unix epoch in seconds."
)

#: All of them, in the order of this file.
DEFINITIONS: tuple[Definition, ...] = tuple(
    value for value in tuple(globals().values()) if isinstance(value, Definition)
)
