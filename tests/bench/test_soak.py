"""A short soak of a real daemon: load with cancels and deadlines, then everything is as it was."""

from collections.abc import Iterator

import pytest

from tests.bench.load.drive import Bounds
from tests.bench.load.mix import Lengths
from tests.bench.load.plan import Profile
from tests.bench.load.soak import Loop, soak
from tests.bench.load.subject import TINY, served
from tests.bench.load.tally import COMPLETED
from tests.bench.load.watch import Watched
from tests.e2e.daemon import Daemon

_PROFILE = Profile(
    subject=TINY,
    lengths=Lengths(8, 90),
    cancels=0.2,
    cancel_after_s=(0.0, 0.3),
    deadlines=0.1,
    deadline_s=(0.01, 0.5),
    batch=0.3,
    many=0.4,
)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One that takes 48 analyses at a time, so that a loop that does not wait is refused some."""
    folder = tmp_path_factory.mktemp("soak")
    with served(TINY, folder, LENSD_LIMITS__MAX_ANALYSES="48") as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize(
    "loop", [Loop(clients=12), Loop(rate=400.0)], ids=["clients that wait", "more than it can take"]
)
async def test_a_daemon_under_load_loses_nothing_and_keeps_nothing(daemon: Daemon, loop: Loop) -> None:
    bounds, warm_up = Bounds(800, 6.0), Bounds(400, 3.0)
    found = await soak(Watched.of(daemon), _PROFILE, bounds, loop=loop, warm_up=warm_up)
    assert [check for check in found.checks if not check.met] == []
    # ... and there was something to lose
    tally = found.tally
    assert tally.completed > 50
    assert {"CANCELLED", "INVALID_ARGUMENT", COMPLETED} <= {code for code, _ in tally.ends}
    assert not loop.rate or tally.refused > 0
