"""The second page: which models are in memory, how they got there, and what memory is left."""

from lensd_server.telemetry import definitions as d
from lensd_server.telemetry.monitoring.grafana import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    Dashboard,
    Panel,
    Query,
    Section,
)
from lensd_server.telemetry.monitoring.promql import quantile, rate, select, total

_STATES = (
    (0, "cold", GREY),
    (1, "loading", BLUE),
    (2, "resident", GREEN),
    (3, "draining", ORANGE),
    (4, "failed", RED),
)

# The state's number where the state is the model's, 0 elsewhere; of one model all but one are 0.
_NUMBERED = (f"{number} * " + select(d.MODEL_STATE, f'state="{state}"') for number, state, _ in _STATES)
_STATE = total(" or ".join(_NUMBERED), ("instance", "model"))

_MODELS = Section(
    "Models",
    (
        Panel(
            "State",
            "Cold models are loaded when somebody asks for them; a failed one is tried again after a while.",
            (Query(_STATE, "{{model}} {{instance}}"),),
            "state-timeline",
            width=16,
            meanings=_STATES,
            least=None,
        ),
        Panel(
            "Analyses that hold a model",
            "A model with a lease is never taken away.",
            (Query(total(select(d.MODEL_LEASES), ("model",)), "{{model}}"),),
        ),
        Panel(
            "Loads",
            "Finished loads, by how they ended.",
            (Query(f"increase({select(d.MODEL_LOADS)}[$__rate_interval]) > 0", "{{model}} {{outcome}}"),),
            stacked=True,
            quiet=True,
            width=6,
        ),
        Panel(
            "Duration of loads",
            "A caller of a cold model waits for this.",
            (Query(quantile(0.9, d.MODEL_LOAD, by=("model",)), "{{model}} 90 %"),),
            unit="s",
            quiet=True,
            width=6,
        ),
        Panel(
            "Analyses by model",
            "Finished ones.",
            (Query(rate(d.ANALYSES, 'model!=""', by=("model",)), "{{model}}"),),
            unit="reqps",
            stacked=True,
            width=6,
        ),
        Panel(
            "Replicas",
            "Copies in memory; as many as are configured, where there is room for them.",
            (Query(total(select(d.MODEL_REPLICAS), ("model",)), "{{model}}"),),
            width=6,
        ),
    ),
)

_ROOM = Section(
    "Room for models",
    (
        Panel(
            "Memory of each device",
            "What models may have of it, what is set aside for those that are there, and what the process has.",
            (Query(total(select(d.DEVICE_MEMORY), ("device", "kind")), "{{device}} {{kind}}"),),
            unit="bytes",
        ),
        Panel(
            "Evictions",
            "Models that made room. For one that others waited for (`turn`) again and again: they do not fit together.",
            (Query(f"increase({select(d.MODEL_EVICTIONS)}[$__rate_interval]) > 0", "{{model}} {{reason}}"),),
            stacked=True,
            quiet=True,
        ),
        Panel(
            "Analyses that wait for a load",
            "Each waits for the whole of it.",
            (Query(total(select(d.MODEL_WAITING), ("model",)), "{{model}}"),),
            stacked=True,
        ),
    ),
)

_MEMORY = Section(
    "The process",
    (
        Panel(
            "Weights of each model",
            "Bytes of the models that are resident.",
            (Query(total(select(d.MODEL_RESIDENT), ("model",)), "{{model}}"),),
            unit="bytes",
            width=12,
            stacked=True,
        ),
        Panel(
            "Kept between batches",
            "Keys and values of long rows, of beginnings that rows share and of texts being written, at most "
            "`max_cache_bytes` of each model; and what analyzers derived from its weights, at most a twentieth of them.",
            (Query(total(select(d.MODEL_KEPT), ("model",)), "{{model}}"),),
            unit="bytes",
            width=12,
            stacked=True,
        ),
        Panel(
            "Memory of the process",
            "Resident memory of each daemon, weights on the CPU included.",
            (Query(total(select(d.PROCESS_MEMORY), ("instance",)), "{{instance}}"),),
            unit="bytes",
            width=12,
        ),
        Panel(
            "Open files and hooks",
            "File descriptors, connections mostly, and hooks on the models' modules: ever more of either are a leak.",
            (
                Query(total(select(d.PROCESS_FILES), ("instance",)), "{{instance}} files"),
                Query(total(select(d.MODEL_HOOKS), ("instance",)), "{{instance}} hooks"),
            ),
            width=12,
        ),
    ),
)

MODELS = Dashboard(
    "lensd-models",
    "lensd / Models and memory",
    "Which models are in memory, how they got there, and what they occupy.",
    (_MODELS, _ROOM, _MEMORY),
)
