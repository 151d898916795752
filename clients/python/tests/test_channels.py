"""Connections: where a token may go, which settings make sense, what the channel is told."""

import contextlib
import json
import socket
import threading
from pathlib import Path

import grpc
import pytest

from lensd_client import SERVICE_CONFIG, Client, ServerUnavailable
from lensd_client.channels import Connection, is_loopback


@pytest.mark.parametrize(
    "target",
    ["127.0.0.1:50051", "127.8.0.1:1", "localhost:1", "[::1]:1", "dns:///localhost:1", "ipv4:127.0.0.1:1",
     "ipv6:[::1]:1", "unix:/run/lensd.sock"],
)  # fmt: skip
def test_this_machine_is_recognised(target: str) -> None:
    assert is_loopback(target)


@pytest.mark.parametrize(
    "target",
    ["10.0.0.1:1", "example.org:1", "localhost.example.org:1", "127.0.0.1.example.org:1", "[2001:db8::1]:1",
     "ipv4:127.0.0.1:1,10.0.0.1:1", "dns://8.8.8.8/localhost:1", "xds:///localhost:1"],
)  # fmt: skip
def test_anything_else_is_not_this_machine(target: str) -> None:
    assert not is_loopback(target)


def test_a_token_never_leaves_in_the_clear() -> None:
    with pytest.raises(ValueError, match=r"in the clear.*TLS") as caught:
        Client("example.org:1", token="s3cret")
    assert "s3cret" not in str(caught.value)
    Client("example.org:1", token="s3cret", tls=True).close()
    with pytest.raises(ValueError, match="in the clear"):
        Client("127.0.0.1:1", admin_target="example.org:1", token="s3cret")


def test_settings_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cert and key"):
        Connection("a:1", cert=tmp_path / "c.pem")
    with pytest.raises(ValueError, match="line break"):
        Connection("127.0.0.1:1", token="a\nb")
    with pytest.raises(ValueError, match="empty"):
        Connection("")
    with pytest.raises(ValueError, match="timeout_s"):
        Client(timeout_s=-1)
    with pytest.raises(FileNotFoundError):
        Client("example.org:1", ca=tmp_path / "missing.pem")


def test_the_service_config_retries_every_lensd_service_and_no_other() -> None:
    (method,) = json.loads(json.dumps(SERVICE_CONFIG))["methodConfig"]
    assert all(name["service"].startswith("lensd.v1.") for name in method["name"])
    assert len(method["name"]) == 5
    assert method["retryPolicy"]["maxAttempts"] == 5
    assert {grpc.StatusCode[c] for c in method["retryPolicy"]["retryableStatusCodes"]} == {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }


def test_receive_limits_are_those_of_grpc_and_loopback_needs_no_proxy() -> None:
    options = dict(Connection("127.0.0.1:1")._options())
    assert "grpc.max_receive_message_length" not in options
    assert options["grpc.enable_http_proxy"] == 0
    assert "grpc.enable_http_proxy" not in dict(Connection("example.org:1")._options())


def test_a_peer_that_hangs_up_at_once_may_want_tls() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        target = f"127.0.0.1:{listener.getsockname()[1]}"

        def hang_up() -> None:
            # Ends when the listener is closed.
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        with Client(target, timeout_s=20) as lens, pytest.raises(ServerUnavailable) as caught:
            lens.models()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    assert f"{target} hangs up" in caught.value.message
    assert "TLS" in caught.value.message
