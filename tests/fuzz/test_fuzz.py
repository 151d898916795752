"""Whatever is sent, the daemon answers with a status that says what was wrong, and goes on.

``python -m tests.fuzz`` does the same for longer and from any seed.
"""

from collections.abc import Iterator

import pytest

from lensd_server.rpc.scope import SCOPES
from tests.e2e.daemon import Daemon
from tests.fuzz.campaign import campaign, fuzzed_daemon
from tests.fuzz.methods import METHODS

_SEED, _ATTEMPTS = 7, 2_000


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with fuzzed_daemon(tmp_path_factory.mktemp("fuzz")) as running:
        yield running


def test_every_method_that_is_served_is_fuzzed() -> None:
    assert {method.path for method in METHODS} == set(SCOPES)


@pytest.mark.slow
def test_no_input_breaks_a_promise(daemon: Daemon) -> None:
    tally = campaign(daemon, _SEED, range(_ATTEMPTS))
    broken = [f"{end.faults} at --only {attempt.index}" for attempt, end in tally.faults]
    assert not broken, f"python -m tests.fuzz --seed {_SEED}: {broken[:10]}"
    assert tally.made == _ATTEMPTS
    assert {method for method, _, _ in tally.ends} == {method.name for method in METHODS}
