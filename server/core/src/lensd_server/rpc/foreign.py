"""Reads the messages of services that are not ours: health, reflection and channelz.

gRPC would do it before any of our code runs, and answer what is malformed with UNKNOWN and a class name.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from lensd_api.errors import InvalidRequest, LensdError
from lensd_server.rpc.guard import KINDS, run
from lensd_server.rpc.status import abort

_Read = Callable[[bytes], Any]


class Foreign(grpc.aio.ServerInterceptor):
    """Stands behind all others; a handler that takes bytes reads them itself and is left as it is."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler for a call; it takes bytes."""
        handler = await continuation(handler_call_details)
        if handler is None or handler.request_deserializer is None:
            return handler
        kind = KINDS[handler.request_streaming, handler.response_streaming]
        answer = _answer(getattr(handler, kind), handler.request_deserializer, handler.request_streaming)
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            answer, response_serializer=handler.response_serializer
        )


def _answer(behaviour: Any, read: _Read, streaming: bool) -> Callable[[Any, Any], Awaitable[Any]]:
    async def answer(raw: Any, context: Any) -> Any:
        try:
            request = _all_read(raw, read) if streaming else _one_read(raw, read)
            return await run(behaviour, request, context)
        except LensdError as error:
            await abort(context, error)
        except NotImplementedError:  # gRPC's own servicer lacks the method; it would be logged as our fault
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "not implemented by this server")

    return answer


async def _all_read(raw_requests: AsyncIterator[bytes], read: _Read) -> AsyncIterator[Any]:
    async for raw in raw_requests:
        yield _one_read(raw, read)


def _one_read(raw: bytes, read: _Read) -> Any:
    try:
        return read(raw)
    except DecodeError as error:
        raise InvalidRequest(
            "the bytes are no message of this method: malformed protobuf; use the service's own stubs",
            reason="MALFORMED_MESSAGE",
        ) from error
