"""When to wake somebody: recording and alerting rules, with what to do about each.

An alert is about what callers feel, or about what they will feel soon if nobody acts. Its runbook
section is part of its definition.
"""

from lensd_server.telemetry import definitions as d
from lensd_server.telemetry.monitoring.overview import COUNTED, FAULTS
from lensd_server.telemetry.monitoring.rules import Alert, Group, Recording

#: Share of analyses that may fail for a reason that is the server's.
ERROR_BUDGET = 0.001
#: Fewer failures than this in the longer window are not worth waking anybody, whatever their share.
LEAST_FAILURES = 10

#: The windows over which failures are compared with the budget.
WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")


def _failing(window: str) -> str:
    return f"job:lensd_analyses_failed:ratio_rate{window}"


def _failing_share(window: str) -> Recording:
    failed = f"sum by (job) (rate({d.ANALYSES.name}{{{FAULTS}}}[{window}]))"
    counted = f"sum by (job) (rate({d.ANALYSES.name}{{{COUNTED}}}[{window}]))"
    return Recording(_failing(window), f"{failed}\n/\n{counted}")


def _burning(factor: float, long: str, short: str) -> str:
    """The budget is spent ``factor`` times too fast: over ``long``, and still over ``short``."""
    limit = f"{factor} * {ERROR_BUDGET}"
    enough = f"sum by (job) (increase({d.ANALYSES.name}{{{FAULTS}}}[{long}])) >= {LEAST_FAILURES}"
    return f"({_failing(long)} > {limit} and {_failing(short)} > {limit} and {enough})"


def _p99(metric: d.HistogramDefinition, by: str) -> str:
    return f"histogram_quantile(0.99, sum by ({by}, le) (rate({metric.name}_bucket[5m])))"


RECORDINGS = Group("lensd-recordings", tuple(_failing_share(window) for window in WINDOWS))

_FAILED_STEPS = (
    "Dashboard *Service overview*, *By outcome*: `plugin_error`, `internal` or `device_oom`?",
    "Which analyzer and model: `topk(5, sum by (analyzer, model, outcome) (rate("
    f"{d.ANALYSES.name}{{{FAULTS}}}[5m])))`.",
    "`plugin_error`: the log line `analyzer failed` has the traceback under the error id that the caller was "
    "given. Go back to the plugin's last good version, or leave it out with `plugins.allow`.",
    "`device_oom`: lower `models.NAME.max_batch_tokens`, or serve fewer models on the device.",
    "`internal`: the log line `engine failed` has the traceback. Go back to the last good version of the "
    "daemon and report it.",
)

AVAILABILITY = Group(
    "lensd-availability",
    (
        Alert(
            "LensdDown",
            'up{job="lensd"} == 0 or absent(up{job="lensd"})',
            "page",
            "{{ $labels.job }} {{ $labels.instance }} does not answer scrapes",
            "Prometheus cannot reach the daemon's metrics port, or knows no target of job lensd. The port has "
            "threads of its own, so the process is gone, hung as a whole, or cut off.",
            (
                "Is the process there? `systemctl status lensd`, or `kubectl get pods`; its last log lines say "
                "why it stopped.",
                "Exit status 1 with `start it anew`: an analyzer held the daemon up and it gave up by itself; "
                "the log names the plugin. See LensdPluginQuarantined.",
                "Killed by the kernel (`dmesg | grep -i oom`): see the dashboard *Models and memory*.",
                "It runs: `curl http://HOST:9464/livez`. 503 says for how long the event loop has stood still.",
                "It answers there: the network between Prometheus and the daemon, or `metrics_listen`.",
            ),
            lasting="2m",
        ),
        Alert(
            "LensdNoReadyModel",
            f'sum by (job, instance) ({d.MODEL_STATE.name}{{state="resident"}}) == 0\n'
            "and on (job, instance)\n"
            f'sum by (job, instance) ({d.MODEL_STATE.name}{{state!~"resident|cold"}}) > 0',
            "page",
            "lensd {{ $labels.instance }} has no model in memory",
            "Every analysis that needs a model waits or is refused: models are loading or have failed, and none is "
            "resident. A daemon whose models are all cold does not count, it loads on demand.",
            (
                "`lensctl models` says the state of each model and the problem of a failed one.",
                "Loading for long: the dashboard *Models and memory* has the usual duration of a load. A first "
                "load downloads and converts; later ones read the cache.",
                "Failed: see LensdModelLoadFailing.",
            ),
            lasting="10m",
        ),
        Alert(
            "LensdErrorBudgetBurningFast",
            f"{_burning(14.4, '1h', '5m')}\nor\n{_burning(6, '6h', '30m')}",
            "page",
            "{{ $value | humanizePercentage }} of analyses of {{ $labels.job }} fail by the server's fault",
            "At this rate the error budget of a month (one analysis in a thousand) is spent within days. Callers "
            "get INTERNAL, or RESOURCE_EXHAUSTED for want of device memory.",
            _FAILED_STEPS,
        ),
        Alert(
            "LensdErrorBudgetBurningSlowly",
            f"{_burning(3, '1d', '2h')}\nor\n{_burning(1, '3d', '6h')}",
            "ticket",
            "{{ $value | humanizePercentage }} of analyses of {{ $labels.job }} fail by the server's fault",
            "More analyses fail than one in a thousand, and have for hours. Nobody needs to get up for it.",
            _FAILED_STEPS,
            lasting="15m",
        ),
    ),
)

SATURATION = Group(
    "lensd-saturation",
    (
        Alert(
            "LensdQueueWaitLong",
            f"{_p99(d.ANALYSIS_QUEUE, 'job, model')} > 10",
            "ticket",
            "one in a hundred analyses of {{ $labels.model }} waits {{ $value | humanizeDuration }}",
            "Analyses wait longer for a model, or for their turn on it, than they should: more is asked for than "
            "the device can do.",
            (
                "Dashboard *Analyzers and batching*: *Device busy* near 1 and *Rows waiting* high: it is load. "
                "Who sends it: `lensctl ps`.",
                "*Rows in a batch* low although rows wait: `models.NAME.max_batch_tokens` is too small.",
                "Device idle: the wait is for loads; see *Loads* on *Models and memory*, and set `preload` or "
                "`pin` for the model.",
                "More daemons, a larger device, or callers that use `priority` BATCH for what can wait.",
            ),
            lasting="10m",
        ),
        Alert(
            "LensdRejecting",
            f'sum by (job) (rate({d.REJECTED.name}{{reason!~"DRAINING|DEVICE_OOM|TOO_LARGE|OVER_BUDGET|QUOTA_EXCEEDED"}}[5m]))\n'
            f"/\nsum by (job) (rate({d.ANALYSES.name}[5m]))\n> 0.1",
            "page",
            "{{ $labels.job }} refuses {{ $value | humanizePercentage }} of analyses",
            "Callers are told to come back later, and more than one in ten was for ten minutes: retries make it "
            "worse, not better.",
            (
                "Dashboard *Service overview*, *Refused*: the reason.",
                "`QUEUE_FULL`: as LensdQueueWaitLong. `limits.max_analyses`, `max_queued_rows` and `max_admitted_*` "
                "bound memory; raise them only if memory allows.",
                "`CALLER_SHARE`: one caller asks for more than `limits.caller_share` of what there is. Where nearly all "
                "comes from one, such as a gateway, it is load, as `QUEUE_FULL`; where it crowds out others, bound "
                "it with `[quota]`, whose refusals (`QUOTA_EXCEEDED`) do not count here.",
                "`DEADLINE_TOO_SHORT`: callers allow less time than their work, or what is ahead of it, takes: as "
                "LensdQueueWaitLong, or longer deadlines. Where the message speaks of a load: `preload` or `pin` the model.",
                "`STREAM_FULL`: one client keeps too many analyses open on one stream: `lensctl ps` shows its peer.",
                "`LOAD_FAILED`: see LensdModelLoadFailing.",
                "`ARTIFACTS_FULL`, `DISK_FULL`: delete artifacts (`lensctl artifacts` lists them, `lensctl delete` "
                "takes them away), or give them more room (`limits.max_artifacts_bytes`, the disk).",
            ),
            lasting="10m",
        ),
        Alert(
            "LensdEventLoopLag",
            f"{_p99(d.EVENT_LOOP_LAG, 'job, instance')} > 0.5",
            "page",
            "the event loop of {{ $labels.instance }} is {{ $value | humanizeDuration }} late",
            "Everything the daemon says to callers is late: results, refusals, health. Something computes on the "
            "loop, or the machine has no processor left for it.",
            (
                "Dashboard *Service overview*, *Processor*: is the machine full? Give the daemon its own cores.",
                "Very large results: *Messages of streams* and, in the log, the analyses that finished at the time.",
                "Neither: take a stack of the process (`py-spy dump --pid PID`) and report it.",
            ),
            lasting="5m",
        ),
    ),
)

MODELS = Group(
    "lensd-models",
    (
        Alert(
            "LensdModelLoadFailing",
            f'increase({d.MODEL_LOADS.name}{{outcome="failed"}}[15m]) > 0',
            "ticket",
            "{{ $labels.instance }} could not load {{ $labels.model }}",
            "A load of the model failed within the last quarter of an hour. Until one succeeds its callers get "
            "UNAVAILABLE; it is tried again when somebody asks, at growing intervals.",
            (
                "`lensctl models`: the problem. The log line around `loading model` has the rest.",
                "Source not found, a digest that does not match, a truncated file: mend the source, then "
                "`lensctl load NAME`.",
                "Out of memory: dashboard *Models and memory*; unload another model or give it another device.",
                "Disk full: the cache folder (`server.cache_dir`) may be deleted.",
            ),
        ),
        Alert(
            "LensdEvictionThrash",
            f'sum by (job, instance) (increase({d.MODEL_EVICTIONS.name}{{reason="turn"}}[15m])) > 10',
            "ticket",
            '{{ $labels.instance }} evicted models that were wanted {{ $value | printf "%.0f" }} times in 15 minutes',
            "Models that are asked for at the same time do not fit together, so they take turns: most of the time goes "
            "into loading instead of analysing.",
            (
                "Dashboard *Models and memory*: *Evictions* says which models take turns, *Memory of each device* "
                "what they have to share.",
                "Raise `limits.memory_bytes` if the device has more, or load one of them as bfloat16 (`dtype`).",
                "Give each model a daemon or a device of its own (`models.NAME.device`), or `pin` the one that "
                "matters most.",
            ),
        ),
    ),
)

PROCESS = Group(
    "lensd-process",
    (
        Alert(
            "LensdDrainStuck",
            f"{d.DRAINING.name} == 1",
            "ticket",
            "{{ $labels.instance }} has been draining for minutes",
            "The daemon was told to stop and has not: far longer than `server.grace_s` allows. It accepts nothing "
            "new. If your grace is above four minutes, make this alert wait longer.",
            (
                "`lensctl ps`: what still runs.",
                "A second SIGTERM skips the waiting; running analyses end with an error that tells callers to "
                "try again.",
                "Still there: a thread inside native code. SIGKILL loses nothing that was completed; state on "
                "disk is written atomically.",
            ),
            lasting="5m",
        ),
        Alert(
            "LensdConfigRefused",
            f'increase({d.CONFIG_RELOADS.name}{{outcome="refused"}}[15m]) > 0',
            "ticket",
            "{{ $labels.instance }} refused its new configuration",
            "The daemon was told to read its configuration again and could not use it. It goes on with the old one, "
            "but would not start with the new one.",
            (
                "The log line at that time names the key and what is wrong with it.",
                "`lensd doctor --config FILE` checks a file without touching the daemon.",
                "Mend it and reload again (`systemctl reload lensd`, or SIGHUP).",
            ),
        ),
        Alert(
            "LensdAuditNotWritten",
            f"increase({d.AUDIT_LOST.name}[15m]) > 0",
            "ticket",
            "{{ $labels.instance }} cannot write its audit",
            "Lines of the last quarter of an hour are missing in `auth.audit_file`. What they tell of "
            "went on, and the daemon's log has them.",
            (
                "The log line `the audit cannot be written` names the file and the problem; it comes once a minute "
                "while that lasts.",
                "Folder or file gone, or made anew for another user: make it writable for the daemon's user "
                "(logrotate: `create 0600 USER GROUP`, or `nocreate` and let the daemon make it). Disk full: make room.",
                "Nothing has to be restarted: the next line tries again, and the log says `the audit is written "
                "again` with how many were lost.",
                "Take what is missing from the log: the lines of logger `lensd.audit`.",
            ),
        ),
        Alert(
            "LensdPluginQuarantined",
            f'{d.PLUGIN_INFO.name}{{status="quarantined"}} == 1',
            "ticket",
            "{{ $labels.instance }} switched off {{ $labels.distribution }}",
            "An analyzer of this plugin failed again and again, did not give way, or wrote into a model's weights, so "
            "all its analyzers are refused with FAILED_PRECONDITION until it is released or the daemon is started anew.",
            (
                "`lensctl analyzers`, and the log line `plugin quarantined`: which analyzer, and for what.",
                "If what it failed of was not its own doing and is mended: `lensctl release DISTRIBUTION`. If it fails "
                "again it is quarantined again.",
                "If it went on after it was cancelled, a thread of it may still run; `lensctl ps` shows it. Release it "
                "when that has ended.",
                "If it wrote into weights, what ran on that model was broken off, and will be the next time, so release "
                "it only knowing that. The model itself was loaded anew.",
                "If it held others up it cannot be released: the daemon drains and is started anew, with the plugin.",
                "Otherwise go back to the plugin's last good version, or leave it out with `plugins.allow`, and start "
                "the daemon anew.",
            ),
        ),
    ),
)

_RENEW = (
    "Renew the certificate where it was made, and put the new files in the place of `tls.cert` and `tls.key`: "
    "the key first. They are read again by themselves.",
    "This alert ends once the daemon has read them; if it does not, the log says why they were refused.",
    "Callers that trust the old authority need the new one before that: `tls.client_ca` and their own.",
)


def _expires_within(days: int) -> str:
    expiry = f"min by (job, instance, listener) ({d.CERTIFICATE_EXPIRY.name})"
    return f"{expiry} - time() < {days} * 86400"


CERTIFICATES = Group(
    "lensd-certificates",
    (
        Alert(
            "LensdCertificateExpiresSoon",
            _expires_within(14),
            "ticket",
            "the certificate of {{ $labels.instance }} ({{ $labels.listener }}) expires in "
            "{{ $value | humanizeDuration }}",
            "Less than two weeks are left. When the certificate has expired no caller connects any more.",
            _RENEW,
            lasting="15m",
        ),
        Alert(
            "LensdCertificateExpires",
            _expires_within(2),
            "page",
            "the certificate of {{ $labels.instance }} ({{ $labels.listener }}) expires in "
            "{{ $value | humanizeDuration }}",
            "Less than two days are left, or it has expired already: then no caller connects any more.",
            _RENEW,
            lasting="15m",
        ),
    ),
)

GROUPS = (RECORDINGS, AVAILABILITY, SATURATION, MODELS, PROCESS, CERTIFICATES)
ALERTS: tuple[Alert, ...] = tuple(rule for group in GROUPS for rule in group.rules if isinstance(rule, Alert))
