"""Counts every gRPC call, whoever serves it: lensd's own services, health and reflection."""

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import grpc.aio
from prometheus_client import Counter

from lensd_server.telemetry.exemplars import belongs_to, exemplar, sampled_trace
from lensd_server.telemetry.metrics import Metrics

_CODES: dict[Any, str] = {code.value[0]: code.name for code in grpc.StatusCode}


class MetricsInterceptor(grpc.aio.ServerInterceptor):
    """Wraps handlers of all four kinds. Methods that do not exist count as ``unknown``."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler for a call, measured."""
        handler = await continuation(handler_call_details)
        if handler is None:
            # A caller can invent any number of names.
            self._metrics.grpc_requests.labels("unknown", "unknown", "UNIMPLEMENTED").inc()
            return None
        _, service, method = handler_call_details.method.split("/", 2)
        trace_id = sampled_trace(handler_call_details.invocation_metadata or ())
        measured = _Measured(self._metrics, service, method, trace_id)
        kind = {
            (False, False): "unary_unary",
            (False, True): "unary_stream",
            (True, False): "stream_unary",
            (True, True): "stream_stream",
        }[handler.request_streaming, handler.response_streaming]
        behaviour = measured.wrap(
            getattr(handler, kind), handler.request_streaming, handler.response_streaming
        )
        build = getattr(grpc, f"{kind}_rpc_method_handler")
        return build(
            behaviour,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


class _Measured:
    def __init__(self, metrics: Metrics, service: str, method: str, trace_id: str) -> None:
        self._metrics = metrics
        self._labels = (service, method)
        self._trace_id = trace_id

    def wrap(self, inner: Any, request_streaming: bool, response_streaming: bool) -> Any:
        # gRPC treats generators and coroutines differently, so each stays what it is.
        if inspect.isasyncgenfunction(inner):

            async def generate(request: Any, context: Any) -> AsyncIterator[Any]:
                with self._measure(context):
                    sent = self._counter("sent")
                    async for response in inner(self._requests(request, request_streaming), context):
                        sent.inc()
                        yield response

            return generate

        async def answer(request: Any, context: Any) -> Any:
            with self._measure(context):
                seen = _CountingContext(context, self._counter("sent")) if response_streaming else context
                return await inner(self._requests(request, request_streaming), seen)

        return answer

    def _requests(self, request: Any, streaming: bool) -> Any:
        if not streaming:
            return request

        async def counted() -> AsyncIterator[Any]:
            received = self._counter("received")
            async for message in request:
                received.inc()
                yield message

        return counted()

    def _counter(self, direction: str) -> Counter:
        return self._metrics.grpc_messages.labels(*self._labels, direction)

    @contextmanager
    def _measure(self, context: Any) -> Iterator[None]:
        belongs_to(self._trace_id)
        in_flight = self._metrics.grpc_in_flight.labels(*self._labels)
        in_flight.inc()
        began = time.monotonic()
        code = "UNKNOWN"
        try:
            yield
            code = _code(context) or "OK"
        except (asyncio.CancelledError, GeneratorExit):
            code = "CANCELLED"
            raise
        except BaseException:
            code = _code(context) or "UNKNOWN"
            raise
        finally:
            in_flight.dec()
            duration = self._metrics.grpc_duration.labels(*self._labels)
            duration.observe(time.monotonic() - began, exemplar())
            self._metrics.grpc_requests.labels(*self._labels, code).inc()


class _CountingContext:
    """A servicer context that counts what is written; everything else is the context's own."""

    def __init__(self, context: Any, written: Counter) -> None:
        self._context = context
        self._written = written

    async def write(self, message: Any) -> None:
        await self._context.write(message)
        self._written.inc()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


def _code(context: Any) -> str:
    code: object = context.code()
    if isinstance(code, grpc.StatusCode):
        return code.name
    # Abort keeps the number; 0 means that nothing was set.
    return _CODES.get(code, "") if code else ""
