"""The server's certificate: used when it fits, replaced without a restart."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from lensd_server.access.certificates import CertificateError, Certificates
from lensd_server.rpc.health import Health
from lensd_server.rpc.listeners import AddressInUse, listen
from lensd_server.settings import TlsSettings
from lensd_server.telemetry.collectors import CertificateCollector


def test_files_that_do_not_fit_are_refused_by_name(authority: Any, tmp_path: Path) -> None:
    one, two = authority.issue("one"), authority.issue("two")
    junk = tmp_path / "junk"
    junk.write_text("junk")
    cases = [
        (one.cert, two.key, None, r"two\.key is not the key of .*one\.pem"),
        (junk, one.key, None, r"tls\.cert: .*junk holds no certificate"),
        (one.cert, junk, None, r"tls\.key: .*junk holds no private key"),
        (one.cert, one.key, junk, r"tls\.client_ca: .*junk holds no certificate"),
        (tmp_path / "gone", one.key, None, r"tls\.cert: .*gone: No such file"),
    ]
    for cert, key, ca, complaint in cases:
        with pytest.raises(CertificateError, match=complaint):
            Certificates(cert, key, ca)
    assert Certificates.of(TlsSettings()) is None


def test_the_old_pair_stays_until_both_files_of_the_new_one_are_there(authority: Any) -> None:
    old, new = authority.issue("old", days=5), authority.issue("new", days=50)
    certificates = Certificates(old.cert, old.key)
    old.cert.write_bytes(new.cert.read_bytes())
    certificates.refresh()
    assert certificates.not_after == old.not_after
    old.key.write_bytes(new.key.read_bytes())
    certificates.refresh()
    assert certificates.not_after == new.not_after


def test_a_scrape_shows_when_the_certificate_of_now_expires(authority: Any) -> None:
    old, new = authority.issue("old", days=5), authority.issue("new", days=50)
    collector = CertificateCollector({"public": Certificates(old.cert, old.key)})

    def shown() -> float:
        (family,) = collector.collect()
        (sample,) = family.samples
        assert sample.labels == {"listener": "public"}
        return sample.value

    assert shown() == old.not_after.timestamp()
    new.key.replace(old.key)
    new.cert.replace(old.cert)
    assert shown() == new.not_after.timestamp()


Served = Callable[..., Any]


@pytest.fixture
async def serve() -> AsyncIterator[Served]:
    """Starts a server that answers health only, and returns its address."""
    servers: list[grpc.aio.Server] = []

    async def start(certificates: Certificates | None, address: str = "127.0.0.1:0") -> str:
        from grpc_health.v1 import health_pb2_grpc

        server = grpc.aio.server()
        servers.append(server)
        health_pb2_grpc.add_HealthServicer_to_server(Health().servicer, server)
        bound = listen(server, address, "test", certificates)
        await server.start()
        return bound

    yield start
    for server in servers:
        await server.stop(None)


async def check(address: str, credentials: grpc.ChannelCredentials | None) -> str:
    """What health says over a connection of its own: OK, or why there is none."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    if credentials is None:
        channel = grpc.aio.insecure_channel(address, options=options)
    else:
        channel = grpc.aio.secure_channel(address, credentials, options=options)
    async with channel:
        try:
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10)
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name} {error.details()}"
    return "OK"


def handshake(address: str, highest: ssl.TLSVersion | None = None) -> tuple[str | None, bytes]:
    """The version agreed on and the certificate shown."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if highest is not None:
        context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        context.maximum_version = highest
        context.set_ciphers("ALL:@SECLEVEL=0")
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), timeout=10) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as wrapped,
    ):
        return wrapped.version(), wrapped.getpeercert(binary_form=True) or b""


def der(cert: Path) -> bytes:
    return ssl.PEM_cert_to_DER_cert(cert.read_text())


async def test_new_connections_get_the_new_certificate_and_open_ones_stay(
    authority: Any, serve: Served
) -> None:
    old, new = authority.issue("old"), authority.issue("new")
    address = await serve(Certificates(old.cert, old.key))
    trusted = grpc.ssl_channel_credentials(authority.ca.read_bytes())
    async with grpc.aio.secure_channel(address, trusted) as channel:
        probe = channel.unary_unary("/grpc.health.v1.Health/Check")
        await probe(b"", timeout=10)
        assert (await asyncio.to_thread(handshake, address))[1] == der(old.cert)
        before = der(old.cert)
        new_der = der(new.cert)
        new.cert.replace(old.cert)
        assert (await asyncio.to_thread(handshake, address))[1] == before
        new.key.replace(old.key)
        assert (await asyncio.to_thread(handshake, address))[1] == new_der
        await probe(b"", timeout=10)
    assert await check(address, trusted) == "OK"


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
async def test_nothing_older_than_tls_1_2_is_spoken(authority: Any, serve: Served) -> None:
    pair = authority.issue("server")
    address = await serve(Certificates(pair.cert, pair.key))
    assert (await asyncio.to_thread(handshake, address))[0] == "TLSv1.3"
    assert (await asyncio.to_thread(handshake, address, ssl.TLSVersion.TLSv1_2))[0] == "TLSv1.2"
    with pytest.raises(ssl.SSLError):
        await asyncio.to_thread(handshake, address, ssl.TLSVersion.TLSv1_1)
    assert (await check(address, None)).startswith("UNAVAILABLE")


async def test_with_a_client_ca_only_its_certificates_connect(
    authority: Any, serve: Served, tmp_path: Path
) -> None:
    pair, client = authority.issue("server"), authority.issue("client")
    strangers = type(authority)(tmp_path / "strangers", "Another CA")
    stranger = strangers.issue("client")
    address = await serve(Certificates(pair.cert, pair.key, authority.ca))
    roots = authority.ca.read_bytes()

    def shown(issued: Any) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(roots, issued.key.read_bytes(), issued.cert.read_bytes())

    assert await check(address, shown(client)) == "OK"
    assert (await check(address, shown(stranger))).startswith("UNAVAILABLE")
    assert (await check(address, grpc.ssl_channel_credentials(roots))).startswith("UNAVAILABLE")
    # The CA is replaced as the certificate is.
    authority.ca.write_bytes(strangers.ca.read_bytes())
    assert await check(address, shown(stranger)) == "OK"
    assert (await check(address, shown(client))).startswith("UNAVAILABLE")


async def test_a_unix_socket_is_its_owners_alone_and_nobody_elses_is_taken(
    serve: Served, tmp_path: Path, authority: Any
) -> None:
    path = tmp_path / "admin.sock"
    path.write_text("left by a crash")
    path.unlink()
    pair = authority.issue("server")
    address = await serve(Certificates(pair.cert, pair.key), f"unix:{path}")
    assert path.stat().st_mode & 0o777 == 0o600
    assert await check(address, None) == "OK"
    with pytest.raises(AddressInUse, match="another process does"):
        await serve(None, f"unix:{path}")
    assert await check(address, None) == "OK"


def test_a_socket_in_a_folder_that_is_not_there_is_explained(tmp_path: Path) -> None:
    async def start() -> None:
        listen(grpc.aio.server(), f"unix:{tmp_path}/none/admin.sock", "server.admin_listen")

    with pytest.raises(AddressInUse, match=r"server\.admin_listen.*is its folder there"):
        asyncio.run(start())
