"""The metrics port: ``/metrics``, ``/livez`` and ``/readyz``.

Served by threads of its own, so that a stalled event loop stays visible rather than silent.
"""

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from lensd_server.addresses import split_address

#: A loop that has not turned for this long gets no new traffic, and one for that long counts as dead.
UNREADY_S, STALLED_S = 10.0, 60.0


class Pulse:
    """Whether the event loop turns, and whether the daemon is ready. Read by other threads."""

    def __init__(self) -> None:
        self._beat = time.monotonic()
        self.phase: Literal["starting", "serving", "draining"] = "starting"
        #: Models that should be resident and cannot be loaded.
        self.failed: tuple[str, ...] = ()

    def beat(self) -> None:
        """Called by the event loop at every turn it is asked for."""
        self._beat = time.monotonic()

    @property
    def stalled_s(self) -> float:
        """Seconds since the loop turned last."""
        return time.monotonic() - self._beat

    def why_not_ready(self) -> str:
        """Why nothing new should be sent here; empty when all is well."""
        if self.phase != "serving":
            return self.phase
        if self.stalled_s > UNREADY_S:
            return f"event loop stalled for {self.stalled_s:.0f} s"
        return f"could not load {', '.join(self.failed)}" if self.failed else ""


class MetricsServer:
    """Answers scrapes and probes until :meth:`stop`."""

    def __init__(self, address: str, registry: CollectorRegistry, pulse: Pulse) -> None:
        """Binds ``address``. Raises OSError."""
        host, port = split_address(address)
        self._server = _server_class(host)((host, port), _handler(registry, pulse))
        bound = self._server.server_address[1]
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            kwargs={"poll_interval": 0.1},
            name="lensd-metrics",
            daemon=True,
        )

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Closes the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _server_class(host: str) -> type[ThreadingHTTPServer]:
    import socket

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    return Server


def _handler(registry: CollectorRegistry, pulse: Pulse) -> type[BaseHTTPRequestHandler]:
    routes: dict[str, Callable[[str], tuple[int, str, bytes]]] = {
        "/metrics": lambda accept: _scrape(registry, accept),
        "/livez": lambda accept: _live(pulse),
        "/readyz": lambda accept: _ready(pulse),
    }

    class Handler(BaseHTTPRequestHandler):
        server_version = "lensd"
        sys_version = ""
        # A connection that sends nothing must not hold a thread for good.
        timeout = 10

        def do_GET(self) -> None:
            route = routes.get(self.path.partition("?")[0])
            if route is None:
                status, kind, body = 404, "text/plain", b"try /metrics, /livez or /readyz\n"
            else:
                status, kind, body = route(self.headers.get("Accept", ""))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (inherited)
            """A scrape every few seconds is not news."""

    return Handler


def _scrape(registry: CollectorRegistry, accept: str) -> tuple[int, str, bytes]:
    encode, kind = choose_encoder(accept)
    return 200, kind, encode(registry)


def _live(pulse: Pulse) -> tuple[int, str, bytes]:
    if pulse.stalled_s > STALLED_S:
        return 503, "text/plain", f"event loop stalled for {pulse.stalled_s:.0f} s\n".encode()
    return 200, "text/plain", b"ok\n"


def _ready(pulse: Pulse) -> tuple[int, str, bytes]:
    why = pulse.why_not_ready()
    return (503, "text/plain", f"not ready: {why}\n".encode()) if why else (200, "text/plain", b"ok\n")
