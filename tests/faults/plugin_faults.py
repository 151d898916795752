"""What an analyzer can do wrong."""

import math
import resource

import pytest

from lensd_client import Client
from lensd_client.errors import DeadlineExceeded, FailedPrecondition, Internal, ResourceExhausted
from tests.faults.matrix import Fault
from tests.faults.site import STALL_S, Site, until

#: What the process may still allocate when an analyzer takes all there is.
_ROOM_BYTES = 768 * 1024 * 1024
#: Others' requests meet a daemon that drains, goes away, and is not back yet.
GONE = frozenset(
    {
        "UNAVAILABLE DRAINING",
        "UNAVAILABLE",
        "UNAVAILABLE SERVER_UNAVAILABLE",
    }
)


def _fails(site: Site, analyzer: str, how: str, model: str = "") -> str:
    """An analysis that fails by its plugin's fault, of which the caller learns an id and nothing else."""
    with site.client() as client:
        with pytest.raises(Internal) as failed:
            client.analyze(analyzer, model=model, params={"how": how}).finish()
    assert failed.value.reason == "PLUGIN_FAILURE"
    assert "words of the plugin" not in str(failed.value)
    assert failed.value.metadata["error_id"] in site.log()
    return "INTERNAL `PLUGIN_FAILURE` with an id that the log has, too"


def _not_a_number(site: Site) -> str:
    with site.client() as client:
        run = client.analyze("nan").finish()
    assert math.isnan(run["table"].to_dict()["value"][0])
    assert math.isnan(float(run["tensor"].to_numpy()[0]))
    assert run["record"]["value"] is None, "JSON knows no NaN"
    assert run["table"].to_dict()["value"][1] == 1.0
    return "NaN where it was found (null in records), no number in its place"


def _device_out_of_memory(site: Site) -> str:
    with site.client() as client:
        with pytest.raises(ResourceExhausted) as failed:
            client.analyze("reduces", model="llama", params={"how": "oom"}).finish()
    assert failed.value.reason == "DEVICE_OOM"
    return "RESOURCE_EXHAUSTED `DEVICE_OOM`"


def _hoards(site: Site) -> str:
    """The process has a limit, as a container has; the analyzer meets it in pieces of 64 MiB."""
    process = site.process
    before = process.rlimit(resource.RLIMIT_AS)
    process.rlimit(resource.RLIMIT_AS, (process.memory_info().vms + _ROOM_BYTES, before[1]))
    try:
        with site.client() as client:
            with pytest.raises(ResourceExhausted) as failed:
                client.analyze("hoards").finish()
    finally:
        process.rlimit(resource.RLIMIT_AS, before)
    assert failed.value.reason == "DEVICE_OOM"
    return "RESOURCE_EXHAUSTED `DEVICE_OOM`; what it held is free again"


def _ignores_its_end(site: Site) -> str:
    with site.client() as client:
        with pytest.raises(DeadlineExceeded):
            client.analyze("ignores", timeout_s=0.3).finish()

        def quarantined() -> bool:
            return any(p.name == "stuck" and str(p.status) == "quarantined" for p in client.plugins())

        until(quarantined, f"a plugin that ignores its cancel for {STALL_S} s is quarantined")
        with pytest.raises(FailedPrecondition) as refused:
            client.analyze("ignores").finish()
        assert refused.value.reason == "PLUGIN_QUARANTINED"
        # Its other analyzers are wanted, in whatever order faults happen.
        distribution = next(p.distribution for p in client.plugins() if p.name == "stuck")
        assert client.release_plugin(distribution)
    return "DEADLINE_EXCEEDED in time; the next ones FAILED_PRECONDITION `PLUGIN_QUARANTINED`"


def _stuck(client: Client, analyzer: str, model: str) -> None:
    with pytest.raises(Internal) as failed:
        client.analyze(analyzer, model=model).finish()
    assert failed.value.reason == "ANALYZER_STUCK"


def _holds_the_loop(site: Site) -> str:
    with site.client() as client:
        _stuck(client, "holds", "")
    site.started_anew_after(1)
    return "INTERNAL `ANALYZER_STUCK`; quarantined, drained, ended with status 1"


def _hangs_the_device(site: Site) -> str:
    with site.client() as client:
        _stuck(client, "hangs", "llama")
    site.started_anew_after(1)
    return "INTERNAL `ANALYZER_STUCK`; quarantined, drained, ended with status 1"


PLUGIN_FAULTS = (
    Fault("analyzer raises", lambda site: _fails(site, "raises", "error")),
    Fault("analyzer raises SystemExit", lambda site: _fails(site, "raises", "exit")),
    Fault("reduce raises on the device thread", lambda site: _fails(site, "reduces", "error", "llama")),
    Fault("analyzer finds NaN", _not_a_number),
    Fault("device out of memory (`torch.OutOfMemoryError` in a reduce)", _device_out_of_memory),
    Fault(
        "analyzer allocates without end, up to the process's limit",
        _hoards,
        frozenset({"RESOURCE_EXHAUSTED DEVICE_OOM"}),
    ),
    Fault("plain analyzer ignores its cancel and hangs", _ignores_its_end),
)
#: These end the daemon; whoever supervises it starts it anew.
FATAL_PLUGIN_FAULTS = (
    Fault("async analyzer blocks the loop of all async ones", _holds_the_loop, GONE, cuts=True),
    Fault("reduce hangs on the device thread", _hangs_the_device, GONE, cuts=True),
)
