"""How a client connects: channel options, the one service config, TLS and the token.

A bearer token is sent over TLS or to this very machine, never in the clear over a network.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

#: What a client of lensd, in any language, should be configured with; this one follows it too. A call is tried again
#: only before its first message and only where the server refused or was not there; the
#: server's pushback (`grpc-retry-pushback-ms`) decides when. gRPC caps attempts at 5.
SERVICE_CONFIG: dict[str, Any] = {
    "methodConfig": [
        {
            "name": [
                {"service": f"lensd.v1.{service}"}
                for service in (
                    "AnalysisService",
                    "AnalyzerService",
                    "ModelService",
                    "ArtifactService",
                    "ServerService",
                )
            ],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ]
}

Path_ = str | PathLike[str]


@dataclass(frozen=True, slots=True)
class Connection:
    """Where to connect and how. ``ca``, ``cert`` and ``key`` are PEM files.

    TLS is used when ``tls`` is true or any of the files is given, but never on a Unix socket;
    without ``ca`` the roots that gRPC brings are trusted. ``token_file`` holds a token and is read
    at every call, so that it can be replaced. Raises ValueError for a combination that makes no
    sense or would send the token in the clear, unless ``token_in_clear`` says that it may.
    """

    target: str
    token: str | None = field(default=None, repr=False)
    ca: Path_ | None = None
    cert: Path_ | None = None
    key: Path_ | None = None
    tls: bool = False
    token_file: Path_ | None = None
    token_in_clear: bool = False

    def __post_init__(self) -> None:
        if not self.target:
            raise ValueError("the target is empty; give HOST:PORT")
        if (self.cert is None) != (self.key is None):
            raise ValueError("cert and key go together: give both or neither")
        if self.token and self.token_file is not None:
            raise ValueError("token and token_file are two tokens: give one of them")
        shown = self._token()
        if shown and not (self.is_secure or is_loopback(self.target) or self.token_in_clear):
            raise ValueError(
                f"the token would travel to {self.target} in the clear; turn TLS on, with the server's `ca` or with "
                "`tls`, or say `token_in_clear` if the network itself is trusted"
            )

    @property
    def is_secure(self) -> bool:
        """Whether TLS is used."""
        wanted = self.tls or self.ca is not None or self.cert is not None
        return wanted and not self.target.startswith("unix:")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with every call. Raises OSError or ValueError when the file of the token is gone or wrong."""
        token = self._token()
        return (("authorization", f"Bearer {token}"),) if token else ()

    def _token(self) -> str:
        token = self.token or ""
        if self.token_file is not None:
            token = Path(self.token_file).read_text(encoding="utf-8").strip()
            if not token:
                raise ValueError(f"{self.token_file} is empty; put the token there")
        if not (token.isascii() and token.isprintable()):
            raise ValueError("the token holds characters that cannot be sent; is there a line break in it?")
        return token

    def open(self) -> grpc.Channel:
        """A channel for threads. It connects when it is first used."""
        if self.is_secure:
            return grpc.secure_channel(self.target, self._credentials(), self._options())
        return grpc.insecure_channel(self.target, self._options())

    def open_aio(self) -> grpc.aio.Channel:
        """A channel for asyncio. It connects when it is first used."""
        if self.is_secure:
            return grpc.aio.secure_channel(self.target, self._credentials(), self._options())
        return grpc.aio.insecure_channel(self.target, self._options())

    def _credentials(self) -> grpc.ChannelCredentials:
        return grpc.ssl_channel_credentials(_read(self.ca), _read(self.key), _read(self.cert))

    def _options(self) -> Sequence[tuple[str, str | int]]:
        options: list[tuple[str, str | int]] = [
            # Done by this client (_retry.py): gRPC's own may leave a call waiting for ever.
            ("grpc.enable_retries", 0),
            # Notices a dead peer within half a minute; servers of lensd allow a ping every 10 s.
            ("grpc.keepalive_time_ms", 20_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.primary_user_agent", "lensd-client-python"),
        ]
        if is_loopback(self.target):
            # A proxy from the environment would carry the token off this machine.
            options.append(("grpc.enable_http_proxy", 0))
        return options


def is_loopback(target: str) -> bool:
    """Whether ``target`` can only be this machine. Anything unusual counts as not."""
    scheme, found, rest = target.partition(":")
    if found and scheme in ("unix", "unix-abstract"):
        return True
    address = target
    if found and scheme in ("dns", "ipv4", "ipv6"):
        address = rest.removeprefix("///")
    host = address[1:].partition("]")[0] if address.startswith("[") else address.rpartition(":")[0] or address
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _read(path: Path_ | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
