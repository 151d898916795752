"""Bounds what a caller who does not read can hold: so many streams, and none unread for long.

gRPC itself runs some megabytes ahead of a reader, on every stream. Invariant: a stream counts until its
last byte has left or its connection is gone, so that broken off streams cannot pile up unread.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from lensd_api.errors import DeadlineExceeded, LensdError, QueueFull
from lensd_server.engine.events import caller_of
from lensd_server.engine.turnover import Turnover
from lensd_server.rpc.guard import admitted, run
from lensd_server.rpc.status import abort
from lensd_server.settings import LimitSettings
from lensd_server.telemetry.metrics import Metrics


@dataclass(slots=True)
class _Streams:
    """Those of one caller: how many it holds, and how long it held others."""

    open: int = 0
    turnover: Turnover = field(default_factory=Turnover)


class Readers(grpc.aio.ServerInterceptor):
    """Wraps every method that streams answers, behind the guard; one for all listeners, so that callers
    count once."""

    def __init__(self, limits: LimitSettings, metrics: Metrics) -> None:
        self._max_streams, self._send_timeout_s = limits.max_streams_per_caller, limits.send_timeout_s
        self._metrics = metrics
        #: Of callers that hold any.
        self._streams: dict[str, _Streams] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler for a call, bounded if it streams."""
        handler = await continuation(handler_call_details)
        if handler is None or not handler.response_streaming:
            return handler
        kind = "stream_stream" if handler.request_streaming else "unary_stream"
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            self._bounded(getattr(handler, kind)),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _bounded(self, inner: Any) -> Callable[[Any, Any], Awaitable[None]]:
        async def answer(request: Any, context: Any) -> None:
            caller = caller_of(admitted().caller.name, context.peer())
            streams = self._streams.setdefault(caller, _Streams())
            if streams.open >= self._max_streams:
                await abort(context, self._refusal(streams))
            streams.open += 1
            began = time.monotonic()
            paced = _PacedContext(context, self._write)
            try:
                await run(inner, request, paced)
            except LensdError as error:  # of a service that is not ours and knows no such errors
                await abort(context, error)
            except grpc.aio.AbortError:
                raise
            except Exception:  # gRPC's own, of a status that was never taken before the client went
                if not paced.gave_up:
                    raise
            finally:
                streams.open -= 1
                streams.turnover.left(time.monotonic() - began)
                if not streams.open:
                    del self._streams[caller]

        return answer

    async def _write(self, context: Any, message: Any) -> None:
        try:
            async with asyncio.timeout(self._send_timeout_s):
                await context.write(message)
        except TimeoutError:
            error = DeadlineExceeded(
                f"the client read nothing for {self._send_timeout_s:g} s; read the stream as it comes, "
                "or have the server wait longer (limits.send_timeout_s)",
                reason="CLIENT_NOT_READING",
            )
            self._metrics.rejected(error.reason)
            raise error from None

    def _refusal(self, streams: _Streams) -> QueueFull:
        error = QueueFull(
            f"this caller holds {self._max_streams} streams already; end one, or put several analyses "
            "on one stream (AnalyzeMany)",
            reason="TOO_MANY_STREAMS",
            metadata={"max_streams_per_caller": str(self._max_streams)},
            retry_after_s=streams.turnover.retry_after_s(self._max_streams),
        )
        self._metrics.rejected(error.reason)
        return error


class _PacedContext:
    """A servicer context that gives up on a client that does not read; all else is the context's own."""

    def __init__(self, context: Any, write: Callable[[Any, Any], Awaitable[None]]) -> None:
        self._context, self._write = context, write
        self.gave_up = False

    async def write(self, message: Any) -> None:
        try:
            await self._write(self._context, message)
        except DeadlineExceeded:
            self.gave_up = True
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)
