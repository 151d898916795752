"""The first page: is it up, does it answer, how fast, and how does the process feel."""

from lensd_server.telemetry import definitions as d
from lensd_server.telemetry.monitoring.grafana import (
    BLUE,
    GREEN,
    ORANGE,
    RED,
    Dashboard,
    Panel,
    Query,
    Section,
)
from lensd_server.telemetry.monitoring.promql import SELECTED, mean, quantile, rate, select, total

#: Outcomes that are the server's fault; what the error budget is spent by.
FAULTS = 'outcome=~"internal|plugin_error|device_oom"'
#: What counts at all: a caller's own mistakes and second thoughts say nothing of the server.
COUNTED = 'outcome!~"client_error|cancelled"'

_BAD_IF_ANY = ((None, GREEN), (1, RED))

_NOW = Section(
    "Now",
    (
        Panel(
            "Daemons up",
            "Daemons that answered their last scrape.",
            (Query(total(f"up{{{SELECTED}}}")),),
            "stat",
            width=3,
            height=4,
            thresholds=((None, RED), (1, GREEN)),
        ),
        Panel(
            "Models resident",
            "Models in memory, over all daemons.",
            (Query(total(select(d.MODEL_STATE, 'state="resident"'))),),
            "stat",
            width=3,
            height=4,
            thresholds=((None, RED), (1, GREEN)),
        ),
        Panel(
            "Firing alerts",
            "Alerts of lensd that fire now; what to do about each is in the runbook.",
            (Query('count(ALERTS{alertname=~"Lensd.*",alertstate="firing"}) or vector(0)'),),
            "stat",
            width=3,
            height=4,
            thresholds=_BAD_IF_ANY,
        ),
        Panel(
            "Draining",
            "Daemons that are shutting down.",
            (Query(total(select(d.DRAINING))),),
            "stat",
            width=3,
            height=4,
            thresholds=((None, GREEN), (1, ORANGE)),
        ),
        Panel(
            "Analyses in flight",
            "Admitted and not over yet.",
            (Query(f"{total(select(d.ANALYSES_IN_FLIGHT))} or vector(0)"),),
            "stat",
            width=3,
            height=4,
            thresholds=((None, BLUE),),
        ),
        Panel(
            "Analyses a second",
            "Finished ones, whatever their outcome.",
            (Query(f"{rate(d.ANALYSES)} or vector(0)"),),
            "stat",
            "reqps",
            width=3,
            height=4,
            thresholds=((None, BLUE),),
        ),
        Panel(
            "Failed by the server",
            "Share of analyses that ended for a reason that is the server's: an error of its own, a plugin's, or "
            "an exhausted device. Mistakes and cancels of callers do not count.",
            (Query(f"({rate(d.ANALYSES, FAULTS)} or vector(0)) / {rate(d.ANALYSES, COUNTED)}"),),
            "stat",
            "percentunit",
            width=3,
            height=4,
            thresholds=((None, GREEN), (0.001, ORANGE), (0.01, RED)),
        ),
        Panel(
            "Nine in ten within",
            "The 90th percentile of the time of an analysis, from admission to its end.",
            (Query(quantile(0.9, d.ANALYSIS_TOTAL)),),
            "stat",
            "s",
            width=3,
            height=4,
            thresholds=((None, BLUE),),
        ),
    ),
)

_ANALYSES = Section(
    "Analyses",
    (
        Panel(
            "By outcome",
            "`client_error`, `cancelled` and `deadline` are mostly the callers'; the rest is ours to look into.",
            (Query(rate(d.ANALYSES, by=("outcome",)), "{{outcome}}"),),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Duration",
            "From admission to the end. Time to the first result is what a reader of the stream feels.",
            (
                Query(quantile(0.5, d.ANALYSIS_TOTAL), "half within", exemplars=True),
                Query(quantile(0.99, d.ANALYSIS_TOTAL), "99 % within", exemplars=True),
                Query(quantile(0.5, d.ANALYSIS_FIRST_RESULT), "first result, half"),
                Query(quantile(0.99, d.ANALYSIS_FIRST_RESULT), "first result, 99 %"),
            ),
            unit="s",
        ),
        Panel(
            "Where the time goes",
            "Mean seconds of an analysis in each part: waiting, forward passes, the analyzer's own work.",
            (
                Query(mean(d.ANALYSIS_QUEUE), "waiting"),
                Query(mean(d.ANALYSIS_FORWARD), "forward"),
                Query(mean(d.ANALYSIS_COMPUTE), "analyzer"),
            ),
            unit="s",
            stacked=True,
        ),
        Panel(
            "Refused",
            "For lack of room or time, by reason: how much is asked for beyond what there is.",
            (Query(f"{rate(d.REJECTED, by=('reason',))} > 0", "{{reason}}"),),
            unit="reqps",
            stacked=True,
            quiet=True,
        ),
        Panel(
            "In flight by analyzer",
            "What runs now.",
            (Query(total(select(d.ANALYSES_IN_FLIGHT), ("analyzer",)), "{{analyzer}}"),),
            stacked=True,
        ),
        Panel(
            "Cancel to device free",
            "How long the device goes on for an analysis that nobody waits for any more.",
            (
                Query(quantile(0.5, d.CANCEL_LATENCY), "half within"),
                Query(quantile(0.99, d.CANCEL_LATENCY), "99 % within"),
            ),
            unit="s",
        ),
    ),
)

_GRPC = Section(
    "gRPC",
    (
        Panel(
            "Calls by method",
            "Health checks and reflection included.",
            (Query(rate(d.GRPC_REQUESTS, by=("method",)), "{{method}}"),),
            unit="reqps",
            stacked=True,
        ),
        Panel(
            "Calls that did not end with OK",
            "By code. RESOURCE_EXHAUSTED and UNAVAILABLE ask callers to come back later.",
            (Query(rate(d.GRPC_REQUESTS, 'code!="OK"', by=("code",)), "{{code}}"),),
            unit="reqps",
            stacked=True,
            quiet=True,
        ),
        Panel(
            "Messages of streams",
            "Results sent and requests received.",
            (Query(rate(d.GRPC_MESSAGES, by=("direction",)), "{{direction}}"),),
            unit="cps",
        ),
    ),
)

_PROCESS = Section(
    "Process",
    (
        Panel(
            "Event loop lag",
            "How late the loop that serves callers wakes up. Above a tenth of a second something computes on it.",
            (
                Query(quantile(0.5, d.EVENT_LOOP_LAG, by=("instance",)), "{{instance}} half"),
                Query(quantile(0.99, d.EVENT_LOOP_LAG, by=("instance",)), "{{instance}} 99 %"),
            ),
            unit="s",
        ),
        Panel(
            "Processor",
            "Processors kept busy by each daemon.",
            (
                Query(
                    total(f"rate({select(d.PROCESS_CPU)}[$__rate_interval])", ("instance",)), "{{instance}}"
                ),
            ),
        ),
        Panel(
            "Tasks on the event loop",
            "As many as there are calls and streams. Ever more of them are a leak.",
            (Query(total(select(d.EVENT_LOOP_TASKS), ("instance",)), "{{instance}}"),),
        ),
        Panel(
            "Certificate lasts",
            "Until the certificate that each listener shows expires. Replace its files in time: they are read again.",
            (
                Query(
                    f"min by (instance, listener) ({select(d.CERTIFICATE_EXPIRY)}) - time()",
                    "{{instance}} {{listener}}",
                ),
            ),
            unit="s",
            quiet=True,
        ),
        Panel(
            "Running versions",
            "More than one during a roll-out, one otherwise.",
            (Query(total(select(d.BUILD_INFO), ("instance", "version", "python"))),),
            "table",
            width=16,
        ),
    ),
)

OVERVIEW = Dashboard(
    "lensd-overview",
    "lensd / Service overview",
    "Whether the service answers, how fast, and for whose fault it does not.",
    (_NOW, _ANALYSES, _GRPC, _PROCESS),
)
