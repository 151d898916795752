"""The metrics port."""

import http.client
import threading
from collections.abc import Iterator

import pytest

from lensd_server.telemetry import http as metrics_http
from lensd_server.telemetry.http import MetricsServer, Pulse
from lensd_server.telemetry.metrics import Metrics


@pytest.fixture
def pulse() -> Pulse:
    """A loop that has just turned."""
    return Pulse()


@pytest.fixture
def server(pulse: Pulse) -> Iterator[MetricsServer]:
    """A server on a free port."""
    server = MetricsServer("127.0.0.1:0", Metrics().registry, pulse)
    server.start()
    yield server
    server.stop()


def get(server: MetricsServer, path: str, accept: str = "*/*") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(server.address, timeout=10)
    try:
        connection.request("GET", path, headers={"Accept": accept})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read().decode()
    finally:
        connection.close()


def test_a_scrape_is_text_unless_openmetrics_is_asked_for(server: MetricsServer) -> None:
    status, kind, text = get(server, "/metrics")
    assert (status, kind.partition(";")[0]) == (200, "text/plain")
    assert "lensd_build_info" in text
    status, kind, text = get(server, "/metrics?x=1", "application/openmetrics-text; version=1.0.0")
    assert (status, kind.partition(";")[0]) == (200, "application/openmetrics-text")
    assert text.endswith("# EOF\n")


def test_readiness_follows_the_daemon(server: MetricsServer, pulse: Pulse) -> None:
    assert get(server, "/readyz")[::2] == (503, "not ready: starting\n")
    pulse.phase = "serving"
    assert get(server, "/readyz")[0] == 200
    pulse.failed = ("qwen",)
    assert get(server, "/readyz")[::2] == (503, "not ready: could not load qwen\n")
    pulse.failed = ()
    assert get(server, "/readyz")[0] == 200
    pulse.phase = "draining"
    assert get(server, "/readyz")[::2] == (503, "not ready: draining\n")


def test_a_stalled_loop_is_not_alive(
    server: MetricsServer, pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert get(server, "/livez")[0] == 200
    monkeypatch.setattr(metrics_http, "STALLED_S", -1.0)
    status, _, text = get(server, "/livez")
    assert status == 503
    assert "stalled" in text


def test_a_stalled_loop_is_not_ready_long_before_it_counts_as_dead(
    server: MetricsServer, pulse: Pulse, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert metrics_http.UNREADY_S < metrics_http.STALLED_S
    pulse.phase = "serving"
    monkeypatch.setattr(metrics_http, "UNREADY_S", -1.0)
    status, _, text = get(server, "/readyz")
    assert (status, "stalled" in text) == (503, True)
    assert get(server, "/livez")[0] == 200


def test_other_paths_are_not_there(server: MetricsServer) -> None:
    assert get(server, "/")[0] == 404
    assert get(server, "/../etc/passwd")[0] == 404


def test_it_answers_while_another_connection_says_nothing(server: MetricsServer) -> None:
    import socket

    host, _, port = server.address.rpartition(":")
    with socket.create_connection((host, int(port))):
        assert get(server, "/metrics")[0] == 200


def test_stopping_frees_the_port(server: MetricsServer) -> None:
    address = server.address
    server.stop()
    again = MetricsServer(address, Metrics().registry, Pulse())
    again.stop()
    assert "lensd-metrics" not in {thread.name for thread in threading.enumerate()}
