"""Ports for servers that a test starts on an address it must know beforehand."""

import random
import socket
from contextlib import ExitStack

#: Below what systems hand out by themselves: no connection of another test takes one of these meanwhile.
_RANGE = range(15_000, 30_000)


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 on which nobody listens; free still when a server is started anew."""
    with ExitStack() as stack:
        found: list[int] = []
        for port in random.sample(_RANGE, len(_RANGE)):
            try:
                stack.enter_context(socket.create_server(("127.0.0.1", port)))
            except OSError:
                continue
            found.append(port)
            if len(found) == count:
                return found
    raise AssertionError(f"fewer than {count} ports are free in {_RANGE}")
