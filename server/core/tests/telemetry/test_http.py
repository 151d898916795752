"""The metrics port."""

import http.client
import socket
import threading
import time
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


def get(server: MetricsServer, path: str, accept: str = "*/*", method: str = "GET") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection(server.address, timeout=10)
    try:
        connection.request(method, path, headers={"Accept": accept})
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


def test_a_probe_with_head_is_answered_as_with_get_but_for_the_body(
    server: MetricsServer, pulse: Pulse
) -> None:
    assert get(server, "/readyz", method="HEAD") == (503, "text/plain", "")
    pulse.phase = "serving"
    for path in ("/readyz", "/livez", "/metrics", "/"):
        status, kind, _ = get(server, path)
        assert get(server, path, method="HEAD") == (status, kind, "")


def test_head_says_how_long_the_body_would_be_and_sends_none(server: MetricsServer) -> None:
    with connect(server) as spoken:
        spoken.sendall(b"HEAD /livez HTTP/1.0\r\n\r\n")
        answer = b"".join(iter(lambda: spoken.recv(4096), b""))
    assert b"Content-Length: 3\r\n" in answer
    assert answer.endswith(b"\r\n\r\n")


def connect(server: MetricsServer) -> socket.socket:
    host, _, port = server.address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=10)


def is_hung_up_on(spoken: socket.socket) -> bool:
    try:
        return spoken.recv(1) == b""
    except ConnectionError:
        return True


def test_it_answers_while_another_connection_says_nothing(server: MetricsServer) -> None:
    with connect(server):
        assert get(server, "/metrics")[0] == 200


def test_so_many_connections_are_served_at_once_and_one_more_is_closed(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_http, "MAX_CONNECTIONS", 2)
    with connect(server), connect(server) as second:
        with connect(server) as third:
            assert is_hung_up_on(third)
        second.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
        assert b" 200 " in second.recv(4096)
        while second.recv(4096):  # to the end of the answer, after which there is room
            pass
        assert until_served(server) == 200


def until_served(server: MetricsServer) -> int:
    """The status of a scrape, once there is room for it."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return get(server, "/metrics")[0]
        except ConnectionError:
            assert time.monotonic() < deadline


def test_a_request_that_comes_byte_by_byte_is_ended_in_time(
    server: MetricsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_http, "REQUEST_S", 0.3)
    began = time.monotonic()
    with connect(server) as spoken:
        spoken.settimeout(0.05)
        ended = False
        while not ended:
            assert time.monotonic() - began < 5, "held for as long as it drips"
            try:
                spoken.sendall(b"x")
                ended = is_hung_up_on(spoken)
            except TimeoutError:
                pass
            except ConnectionError:
                ended = True
    assert time.monotonic() - began >= 0.3


def test_stopping_frees_the_port(server: MetricsServer) -> None:
    address = server.address
    server.stop()
    again = MetricsServer(address, Metrics().registry, Pulse())
    again.stop()
    assert "lensd-metrics" not in {thread.name for thread in threading.enumerate()}
