"""A certificate authority for tests."""

import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID


@dataclass(frozen=True)
class Issued:
    """Files of one certificate; ``not_after`` is when it expires."""

    cert: Path
    key: Path
    not_after: datetime


class Authority:
    """Issues certificates for this machine; ``ca`` is its own."""

    def __init__(self, folder: Path, name: str = "Test CA") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.ca = folder / "ca.pem"
        cert = (
            self._builder(self._subject, self._key.public_key(), timedelta(days=30))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self._key, SHA256())
        )
        self.ca.write_bytes(cert.public_bytes(Encoding.PEM))

    def issue(self, name: str, *names: str, days: float = 10, local: bool = True) -> Issued:
        """A pair for ``name``, valid for ``days`` from an hour ago, also for this machine if it is ``local``.

        ``names`` are URIs or DNS names.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        here = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        alternatives: list[x509.GeneralName] = [
            *(here if local else []),
            *(x509.UniformResourceIdentifier(n) if "://" in n else x509.DNSName(n) for n in names),
        ]
        cert = (
            self._builder(subject, key.public_key(), timedelta(days=days))
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .sign(self._key, SHA256())
        )
        issued = Issued(self._folder / f"{name}.pem", self._folder / f"{name}.key", cert.not_valid_after_utc)
        issued.cert.write_bytes(cert.public_bytes(Encoding.PEM))
        issued.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return issued

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, valid: timedelta
    ) -> x509.CertificateBuilder:
        began = datetime.now(UTC) - timedelta(hours=1)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(began)
            .not_valid_after(began + valid)
        )
