"""What systemd is told, read from a socket such as it opens."""

import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from lensd_server.systemd import Supervisor


@pytest.fixture(params=["path", "abstract"])
def notices(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """The socket that a supervisor listens on."""
    address = f"@lensd-{os.getpid()}" if request.param == "abstract" else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + address[1:] if address.startswith("@") else address)
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        monkeypatch.delenv("WATCHDOG_USEC", raising=False)
        monkeypatch.delenv("WATCHDOG_PID", raising=False)
        yield listener


def test_the_supervisor_is_told_of_every_turn_in_the_daemons_life(notices: socket.socket) -> None:
    supervisor = Supervisor()
    supervisor.ready("serving a")
    assert notices.recv(4096) == b"READY=1\nSTATUS=serving a"
    supervisor.reloading()
    assert notices.recv(4096).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    supervisor.stopping("draining")
    assert notices.recv(4096) == b"STOPPING=1\nSTATUS=draining"


def test_it_says_that_it_is_alive_only_to_who_watches(
    notices: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    Supervisor().alive()
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", "1")
    Supervisor().alive()
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    Supervisor().alive()
    notices.setblocking(False)
    assert notices.recv(4096) == b"WATCHDOG=1"
    with pytest.raises(BlockingIOError):
        notices.recv(4096)


def test_without_a_supervisor_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    supervisor = Supervisor()
    supervisor.ready("x")
    supervisor.alive()


def test_a_process_without_free_descriptors_goes_on(
    notices: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor = Supervisor()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        supervisor.ready("x")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    supervisor.ready("y")
    assert notices.recv(4096) == b"READY=1\nSTATUS=y"


def test_a_supervisor_that_went_away_harms_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    Supervisor().ready("x")
