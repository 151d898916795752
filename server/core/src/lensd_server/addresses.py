"""Addresses that are listened on: a host and a port, or a Unix socket."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

_UNIX = "unix:"
#: What fits into a socket address of Linux, its end included.
_MAX_PATH_BYTES = 107


def split_address(address: str) -> tuple[str, int]:
    """Host and port of ``host:port`` or ``[v6]:port``. Raises ValueError."""
    match = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:/\s]+)):(\d{1,5})", address)
    if match is None or int(match[3]) > 65535:
        raise ValueError(f"{address!r} is not HOST:PORT, such as 127.0.0.1:50051 or [::1]:50051")
    return match[1] or match[2], int(match[3])


def socket_path(address: str) -> Path | None:
    """The file of ``unix:/path``; ``None`` for HOST:PORT. Raises ValueError."""
    if not address.startswith(_UNIX):
        return None
    text = address.removeprefix(_UNIX)
    path = Path(text)
    if not path.is_absolute() or "\0" in text:
        raise ValueError(f"{address!r} is not unix:/path, with a path from the root")
    if len(text.encode()) > _MAX_PATH_BYTES:
        raise ValueError(
            f"{address!r} is longer than the {_MAX_PATH_BYTES} bytes a Unix socket's path may have"
        )
    return path


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach ``address``. Names other than localhost are not trusted."""
    if socket_path(address) is not None:
        return True
    host, _ = split_address(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _port(value: str) -> str:
    split_address(value)
    return value


def _port_or_socket(value: str) -> str:
    if socket_path(value) is None:
        split_address(value)
    return value


#: HOST:PORT.
PortAddress = Annotated[str, AfterValidator(_port)]
#: HOST:PORT or unix:/path.
Address = Annotated[str, AfterValidator(_port_or_socket)]
