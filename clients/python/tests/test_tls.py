"""What a client says when TLS or its credentials are not what the server wants."""

from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from lensd_client import Client
from lensd_client.channels import Connection
from lensd_client.errors import LensdError, Unimplemented
from tests.authority import Authority, Issued

Start = Callable[..., str]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a server without methods, over TLS if it has a certificate."""
    servers: list[grpc.Server] = []

    def run(issued: Issued | None, client_ca: Path | None = None) -> str:
        server = grpc.server(futures.ThreadPoolExecutor(1))
        servers.append(server)
        if issued is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            pair = (issued.key.read_bytes(), issued.cert.read_bytes())
            roots = client_ca.read_bytes() if client_ca else None
            credentials = grpc.ssl_server_credentials([pair], roots, client_ca is not None)
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        return f"127.0.0.1:{port}"

    yield run
    for server in servers:
        server.stop(None).wait()


def complaint(target: str, **settings: Any) -> str:
    with Client(target, timeout_s=20, **settings) as lens, pytest.raises(LensdError) as caught:
        lens.server_info()
    return "" if isinstance(caught.value, Unimplemented) else caught.value.message


def test_what_is_wrong_with_the_servers_certificate_is_said(
    authority: Authority, start: Start, tmp_path: Path
) -> None:
    good = start(authority.issue("server"))
    assert complaint(good, ca=authority.ca) == ""
    stranger = Authority(tmp_path / "stranger", "Another CA")
    assert "is that its CA?" in complaint(good, ca=stranger.ca)
    assert "is that its CA?" in complaint(good, tls=True)
    expired = start(authority.issue("late", days=0.01))
    assert "has expired" in complaint(expired, ca=authority.ca)
    elsewhere = start(authority.issue("elsewhere", "elsewhere.example", local=False))
    assert "is for another name" in complaint(elsewhere, ca=authority.ca)


def test_tls_on_one_side_only_is_said(authority: Authority, start: Start) -> None:
    assert "want TLS (`ca` or `tls`)" in complaint(start(authority.issue("server")))
    assert "does not speak TLS" in complaint(start(None), ca=authority.ca)


def test_a_missing_client_certificate_is_said(authority: Authority, start: Start, tmp_path: Path) -> None:
    target = start(authority.issue("server"), authority.ca)
    assert "a certificate of this client" in complaint(target, ca=authority.ca)
    mine = authority.issue("me")
    assert complaint(target, ca=authority.ca, cert=mine.cert, key=mine.key) == ""


def test_a_token_file_is_read_at_every_call_and_never_sent_in_the_clear(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first\n")
    connection = Connection("127.0.0.1:1", token_file=file)
    assert connection.metadata == (("authorization", "Bearer first"),)
    file.write_text("second\n")
    assert connection.metadata == (("authorization", "Bearer second"),)
    assert "second" not in repr(connection)
    with pytest.raises(ValueError, match="in the clear"):
        Connection("example.org:1", token_file=file)
    Connection("example.org:1", token_file=file, token_in_clear=True)
    with pytest.raises(ValueError, match="two tokens"):
        Connection("127.0.0.1:1", token="a", token_file=file)
    file.write_text("")
    with pytest.raises(ValueError, match="is empty"):
        Connection("127.0.0.1:1", token_file=file)


def test_a_unix_socket_needs_no_tls_whatever_the_other_listener_needs(tmp_path: Path) -> None:
    assert not Connection("unix:/run/lensd/admin.sock", ca=tmp_path / "ca.pem").is_secure
