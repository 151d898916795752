"""The server's certificate, replaced without a restart.

gRPC asks for the certificate at every new connection. A pair that does not fit, as in the middle
of a rotation, is not used: connections get the one before until both files are there.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import grpc
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from lensd_server.access.files import version_of
from lensd_server.settings import TlsSettings

_log = structlog.get_logger("lensd.access")


class CertificateError(Exception):
    """The certificate files cannot be used; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class _Pair:
    """What was read. ``not_after`` is when the server's own certificate expires."""

    configuration: grpc.ServerCertificateConfiguration
    not_after: datetime


class Certificates:
    """Certificate, key and callers' CA, read again when one of the files has changed.

    Safe to use from any thread.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None = None) -> None:
        """Raises CertificateError."""
        self._cert, self._key, self._client_ca = cert, key, client_ca
        self._lock = threading.Lock()
        self._seen = self._version()
        self._pair = _read(cert, key, client_ca)
        self._tell("certificate read")

    @classmethod
    def of(cls, tls: TlsSettings) -> "Certificates | None":
        """Those that the settings name. Raises CertificateError."""
        if tls.cert is None or tls.key is None:
            return None
        return cls(tls.cert, tls.key, tls.client_ca)

    @property
    def not_after(self) -> datetime:
        """When the certificate in use expires."""
        return self._pair.not_after

    def refresh(self) -> None:
        """Reads the files again if they are not those that were read last."""
        version = self._version()
        if version == self._seen:
            return
        with self._lock:
            if version == self._seen:
                return
            try:
                self._pair = _read(self._cert, self._key, self._client_ca)
                self._tell("certificate read again")
            except CertificateError as error:
                _log.error("certificate kept as it was", problem=str(error))
            self._seen = version

    def credentials(self) -> grpc.ServerCredentials:
        """For one listener. It wants a certificate of its callers if there is a CA for them."""
        return grpc.dynamic_ssl_server_credentials(
            self._pair.configuration,
            # The stubs leave out that None, for no change, is what gRPC documents.
            cast("Callable[[], grpc.ServerCertificateConfiguration]", self._changes()),
            require_client_authentication=self._client_ca is not None,
        )

    def _changes(self) -> Callable[[], grpc.ServerCertificateConfiguration | None]:
        """What gRPC calls on threads of its own before each handshake; ``None`` is: no change."""
        given = self._pair

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            self.refresh()
            latest = self._pair
            if latest is given:
                return None
            given = latest
            return latest.configuration

        return changed

    def _version(self) -> tuple[tuple[int, ...], ...]:
        return tuple(
            version_of(path) for path in (self._cert, self._key, self._client_ca) if path is not None
        )

    def _tell(self, event: str) -> None:
        late = self.not_after <= datetime.now(UTC)
        tell = _log.error if late else _log.info
        tell(event, file=str(self._cert), expires=self.not_after.isoformat(), expired=late)


def _read(cert: Path, key: Path, client_ca: Path | None) -> _Pair:
    chain_pem, key_pem = _bytes(cert, "tls.cert"), _bytes(key, "tls.key")
    own = _certificates(chain_pem, cert, "tls.cert")[0]
    try:
        private = load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError) as error:
        raise CertificateError(f"tls.key: {key} holds no private key in PEM without a password") from error
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if private.public_key().public_bytes(*spki) != own.public_key().public_bytes(*spki):
        raise CertificateError(f"tls.key: {key} is not the key of {cert}")
    roots = None
    if client_ca is not None:
        roots = _bytes(client_ca, "tls.client_ca")
        _certificates(roots, client_ca, "tls.client_ca")
    return _Pair(
        grpc.ssl_server_certificate_configuration([(key_pem, chain_pem)], roots), own.not_valid_after_utc
    )


def _certificates(pem: bytes, path: Path, setting: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise CertificateError(f"{setting}: {path} holds no certificate in PEM") from error


def _bytes(path: Path, setting: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CertificateError(f"{setting}: {path}: {error.strerror}") from error
