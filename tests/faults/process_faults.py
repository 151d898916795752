"""What happens to the process: signals, a kill, a wall clock that jumps."""

import shutil
import signal
import threading
import time

import pytest

from lensd_client.errors import DeadlineExceeded, LensdError
from tests.faults.matrix import Fault
from tests.faults.plugin_faults import GONE
from tests.faults.site import Site, until

_BLOB_BYTES = 200_000
_TEN_YEARS_S = 10 * 365 * 86400


def _terminated(site: Site) -> str:
    site.daemon.process.send_signal(signal.SIGTERM)
    site.started_anew_after(0)
    return "what ran finished; new ones UNAVAILABLE `DRAINING`; ended with status 0"


def _killed(site: Site) -> str:
    """In the middle of artifacts and of a count that leaves checkpoints."""
    completed: dict[str, str] = {}
    enough = threading.Event()

    def keep() -> None:
        try:
            with site.client() as client:
                for number in range(100_000):
                    params = {"artifact": f"kept-{number % 7}", "size": _BLOB_BYTES}
                    record = client.analyze("keeps", params=params).finish()["kept"]
                    completed[str(record["reference"])] = str(record["sha256"])
                    if len(completed) >= 10:
                        enough.set()
        except LensdError:
            return

    keeping = threading.Thread(target=keep)
    keeping.start()
    count = {"to": 5, "then_wait": True, "name": f"run {site.starts}"}
    with site.client() as client:
        run = client.analyze("counts", params=count)
        next(event for event in run if getattr(event, "name", "") == "counted")
        assert enough.wait(60)
        site.daemon.process.kill()
        keeping.join()
    site.started_anew_after(-signal.SIGKILL)
    assert not list(site.state.rglob(".writing-*")), "what was half-written is swept"
    with site.client() as client:
        for reference, digest in completed.items():
            opened = client.analyze("opens", params={"artifact": reference}).finish()["opened"]
            assert (opened["size"], opened["sha256"]) == (_BLOB_BYTES, digest)
        known = {f"{a.name}@{a.version}" for a in client.artifacts()}
        assert completed.keys() <= known
        assert client.analyze("counts", params=count).finish()["start"]["at"] == 5
    return f"UNAVAILABLE; all {len(completed)} completed artifacts are whole, the count went on where it was"


def _clock_jumps(site: Site) -> str:
    """For this process alone: moving the machine's clock would hurt others."""
    with site.client() as client:
        try:
            for ahead_s in (_TEN_YEARS_S, -_TEN_YEARS_S, 1):
                site.move_clock(ahead_s)
                now = float(client.analyze("clock").finish()["clock"]["now"])
                assert abs(now - time.time() - ahead_s) < 60, "the clock was moved"
                with pytest.raises(DeadlineExceeded):
                    client.analyze("waits", timeout_s=0.5).finish()
                client.analyze("counts", params={"to": 2}, timeout_s=30.0).finish()
                assert site.daemon.scrape("/readyz") == "ok\n"
                until(
                    lambda: not [a for a in client.analyses() if a.analyzer == "waits"], "the expired is gone"
                )
        finally:
            site.move_clock(0)
    return "deadlines and durations as before: they are measured on the monotonic clock"


#: What moves the clock is compiled.
_CLOCK = (Fault("wall clock jumps ten years on and back", _clock_jumps),) if shutil.which("cc") else ()
PROCESS_FAULTS = (
    *_CLOCK,
    Fault("SIGKILL while artifacts and checkpoints are written", _killed, GONE, cuts=True),
    Fault("SIGTERM", _terminated, GONE),
)
