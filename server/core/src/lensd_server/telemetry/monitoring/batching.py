"""The third page: what each analyzer costs, and how well requests share the device."""

from lensd_server.telemetry import definitions as d
from lensd_server.telemetry.monitoring.grafana import Dashboard, Panel, Query, Section
from lensd_server.telemetry.monitoring.promql import (
    amount,
    mean,
    quantile,
    rate,
    select,
    spread,
    total,
)

_ANALYZER = ("analyzer",)
_MODEL = ("model",)

_ANALYZERS = Section(
    "Analyzers",
    (
        Panel(
            "Analyses",
            "Finished ones, whatever their outcome.",
            (Query(rate(d.ANALYSES, by=_ANALYZER), "{{analyzer}}"),),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Duration, 90 % within",
            "From admission to the end.",
            (Query(quantile(0.9, d.ANALYSIS_TOTAL, by=_ANALYZER), "{{analyzer}}", exemplars=True),),
            unit="s",
        ),
        Panel(
            "First result, 90 % within",
            "From the request to the first result.",
            (Query(quantile(0.9, d.ANALYSIS_FIRST_RESULT, by=_ANALYZER), "{{analyzer}}", exemplars=True),),
            unit="s",
        ),
        Panel(
            "Waiting, mean",
            "For admission, for a cold model, for a turn on the device.",
            (Query(mean(d.ANALYSIS_QUEUE, by=_ANALYZER), "{{analyzer}}"),),
            unit="s",
        ),
        Panel(
            "Forward passes, mean",
            "Batches that held rows of the analysis; those are shared with others.",
            (Query(mean(d.ANALYSIS_FORWARD, by=_ANALYZER), "{{analyzer}}"),),
            unit="s",
        ),
        Panel(
            "The analyzer's own work, mean",
            "Everything else. Where this dominates, a larger device does not help.",
            (Query(mean(d.ANALYSIS_COMPUTE, by=_ANALYZER), "{{analyzer}}"),),
            unit="s",
        ),
    ),
)

_BATCHING = Section(
    "Queue and batches",
    (
        Panel(
            "Rows waiting",
            "Beyond what the running batch holds. More than a few batches' worth for long: too much is asked for.",
            (Query(total(select(d.QUEUE_ROWS), _MODEL), "{{model}}"),),
            width=12,
            stacked=True,
        ),
        Panel(
            "Tokens waiting",
            "The same in tokens: what the wait will be like.",
            (Query(total(select(d.QUEUE_TOKENS), _MODEL), "{{model}}"),),
            width=12,
            stacked=True,
        ),
        Panel(
            "Device busy",
            "Share of the time in which a batch of the model is on its device. Near 1 it is full.",
            (Query(amount(d.BATCH_DURATION, by=("instance", "model")), "{{model}} {{instance}}"),),
            unit="percentunit",
        ),
        Panel(
            "Rows in a batch",
            "How many requests share a forward pass; brighter is more batches.",
            (Query(spread(d.BATCH_ROWS)),),
            "heatmap",
            least=None,
        ),
        Panel(
            "Tokens in a batch",
            "On average, padding not counted, and what one may hold with it: batches near that are as large as pays.",
            (
                Query(mean(d.BATCH_TOKENS, by=_MODEL), "{{model}} on average"),
                Query(f"max by (model) ({select(d.MODEL_BATCH_TOKENS)})", "{{model}} at most"),
            ),
        ),
        Panel(
            "Duration of a batch",
            "A batch's turn on the device, reduces included.",
            (
                Query(quantile(0.5, d.BATCH_DURATION, by=_MODEL), "{{model}} half within"),
                Query(quantile(0.99, d.BATCH_DURATION, by=_MODEL), "{{model}} 99 % within"),
            ),
            unit="s",
            width=12,
        ),
        Panel(
            "Tokens a second",
            "Through the model, padding not counted.",
            (Query(amount(d.BATCH_TOKENS, by=_MODEL), "{{model}}"),),
            width=12,
        ),
        Panel(
            "Padding",
            "Tokens that the device computes over tokens that were asked for; 1 is no padding.",
            (Query(mean(d.BATCH_PADDING, by=_MODEL), "{{model}}"),),
            least=1,
        ),
        Panel(
            "Rows that cost nothing",
            "Rows answered by an equal row of the same batch, a second.",
            (Query(rate(d.ROWS_SHARED, by=_MODEL), "{{model}}"),),
            unit="cps",
        ),
        Panel(
            "Beginnings that are shared",
            "Tokens a second of beginnings that several rows share: computed once, and reused instead of computed.",
            (Query(rate(d.PREFIX_TOKENS, by=("kind",)), "{{kind}}"),),
            unit="cps",
        ),
    ),
)

_PLUGINS = Section(
    "Plugins",
    (
        Panel(
            "Installed",
            "One that is broken or quarantined offers nothing; `lensctl analyzers` says why.",
            (
                Query(
                    total(select(d.PLUGIN_INFO), ("instance", "plugin", "distribution", "version", "status"))
                ),
            ),
            "table",
            width=16,
        ),
        Panel(
            "Errors of hooks",
            "What plugins' hooks and collectors raised; an analyzer's own failures are outcomes of analyses.",
            (Query(rate(d.PLUGIN_ERRORS, by=("distribution",)), "{{distribution}}"),),
            unit="cps",
        ),
    ),
)

BATCHING = Dashboard(
    "lensd-batching",
    "lensd / Analyzers and batching",
    "What each analyzer costs, and how well requests share the device.",
    (_ANALYZERS, _BATCHING, _PLUGINS),
)
