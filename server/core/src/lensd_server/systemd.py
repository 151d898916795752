"""Tells systemd how the daemon is: sd_notify(3), a datagram to the socket that it names.

Silent where no supervisor asked for it, which is everywhere but under ``Type=notify``.
"""

import os
import socket
import time


class Supervisor:
    """Whoever started the daemon and waits to be told."""

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        #: Whether it restarts a daemon that stops to say :meth:`alive`.
        self.watches = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()) and bool(
            os.environ.get("WATCHDOG_USEC")
        )

    def ready(self, status: str) -> None:
        """It serves, or goes on serving after a reload."""
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """It reads its configuration again; :meth:`ready` ends that."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        """It drains."""
        self._tell("STOPPING=1", f"STATUS={status}")

    def alive(self) -> None:
        """The event loop turns."""
        if self.watches:
            self._tell("WATCHDOG=1")

    def _tell(self, *lines: str) -> None:
        if not self._address:
            return
        # An abstract socket is written with @ for its leading zero byte.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notice:
                notice.sendto("\n".join(lines).encode(), address)
        except OSError:  # without a supervisor, or a descriptor to reach it, the daemon goes on
            return
