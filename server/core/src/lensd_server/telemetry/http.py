"""The metrics port: ``/metrics``, ``/livez`` and ``/readyz``.

Served by threads of its own, so that a stalled event loop stays visible rather than silent. Invariant:
there are at most :data:`MAX_CONNECTIONS` of them, and none lasts longer than :data:`REQUEST_S`.
"""

import contextlib
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from lensd_server.addresses import split_address

#: A loop that has not turned for this long gets no new traffic, and one for that long counts as dead.
UNREADY_S, STALLED_S = 10.0, 60.0
#: Connections served at once; one more is closed. A request has one of its own.
MAX_CONNECTIONS = 32
#: How long one may take, from the connection to the end of the answer.
REQUEST_S = 30.0

_log = structlog.get_logger("lensd.metrics")


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
        self._server = _Server(host, port, _handler(registry, pulse))
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


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._lock = threading.Lock()
        #: Since when each connection is served.
        self._since: dict[Any, float] = {}
        super().__init__((host, port), handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:
        """Whether there is room for one more connection."""
        with self._lock:
            if len(self._since) >= MAX_CONNECTIONS:
                return False
            self._since[request] = time.monotonic()
            return True

    def shutdown_request(self, request: Any) -> None:
        """Closes a connection, served or not."""
        with self._lock:
            self._since.pop(request, None)
        super().shutdown_request(request)

    def service_actions(self) -> None:
        """Called several times a second: hangs up on whoever takes too long."""
        late = time.monotonic() - REQUEST_S
        with self._lock:
            overdue = [request for request, since in self._since.items() if since < late]
        for request in overdue:
            with contextlib.suppress(OSError):  # over meanwhile
                request.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that breaks is the other side's business; anything else is ours."""
        if not isinstance(sys.exception(), OSError):
            _log.exception("a request to the metrics port failed")


def _handler(registry: CollectorRegistry, pulse: Pulse) -> type[BaseHTTPRequestHandler]:
    routes: dict[str, Callable[[str], tuple[int, str, bytes]]] = {
        "/metrics": lambda accept: _scrape(registry, accept),
        "/livez": lambda accept: _live(pulse),
        "/readyz": lambda accept: _ready(pulse),
    }

    class Handler(BaseHTTPRequestHandler):
        server_version = "lensd"
        sys_version = ""
        # Of a connection that sends nothing, or reads nothing.
        timeout = 10

        def do_GET(self) -> None:
            self.wfile.write(self._answer())

        def do_HEAD(self) -> None:
            self._answer()

        def _answer(self) -> bytes:
            """Sends status and headers; what is returned is the body that goes with them."""
            route = routes.get(self.path.partition("?")[0])
            if route is None:
                status, kind, body = 404, "text/plain", b"try /metrics, /livez or /readyz\n"
            else:
                status, kind, body = route(self.headers.get("Accept", ""))
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            return body

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
