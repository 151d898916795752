"""``lensd serve`` that counts nothing, to find out what counting costs. For the benchmark alone.

The daemon has no switch for it, and should have none: here its metrics are replaced by ones that do
nothing, and the interceptor that counts calls by one that lets them through.
"""

from typing import Any

import grpc.aio

from lensd_server import app, cli, daemon
from lensd_server.telemetry.metrics import Metrics


class Unmeasured(Metrics):
    """Observes nothing."""

    def rejected(self, *_: Any) -> None: ...
    def first_result(self, *_: Any) -> None: ...
    def started(self, *_: Any) -> None: ...
    def finished(self, *_: Any) -> None: ...
    def batch_ran(self, *_: Any) -> None: ...
    def queue_changed(self, *_: Any) -> None: ...
    def cancel_took(self, *_: Any) -> None: ...


class Unwatched(grpc.aio.ServerInterceptor):
    """Lets every call through."""

    def __init__(self, _: Metrics) -> None: ...

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """The handler as it is."""
        return await continuation(handler_call_details)


def main() -> None:
    """The command ``lensd``, unmeasured."""
    for module, name, replacement in (
        (app, "Metrics", Unmeasured),
        (daemon, "MetricsInterceptor", Unwatched),
    ):
        assert hasattr(module, name), f"{module.__name__} has no {name} any more: mend this benchmark"
        setattr(module, name, replacement)
    cli.main()


if __name__ == "__main__":
    main()
