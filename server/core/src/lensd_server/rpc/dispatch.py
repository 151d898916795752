"""The one way from gRPC to a servicer and back: scope, parsing, errors, sending.

A servicer is a plain object with one method an RPC, in snake case: a coroutine
``(request, call) -> response`` or an async generator of responses. It raises
:class:`LensdError` and never sees gRPC.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from lensd_api.errors import Cancelled, DeadlineExceeded, LensdError
from lensd_server.engine.faults import internal_failure
from lensd_server.rpc import wire
from lensd_server.rpc.scope import Listener, authorise
from lensd_server.rpc.status import code_of, to_status, trailing_metadata

#: A client that reads nothing for this long holds a lease for nothing.
SEND_TIMEOUT_S = 300.0

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """What a servicer may know of a call. ``deadline`` is on ``time.monotonic()``.

    ``identity`` is who calls, empty where callers are not authenticated.
    """

    method: str
    peer: str
    deadline: float | None
    identity: str = ""


@dataclass(frozen=True, slots=True)
class _Method:
    path: str
    request: type[Message]
    behaviour: Callable[[Any, Call], Any]
    listener: Listener
    max_request_bytes: int

    def parse(self, raw: bytes) -> Message:
        return wire.parse(raw, self.request, self.max_request_bytes)


def service_handler(
    service: ServiceDescriptor, servicer: object, listener: Listener, max_request_bytes: int
) -> grpc.GenericRpcHandler:
    """Serves every method of ``service``; one that ``servicer`` lacks is an error at start."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        bound = _Method(
            path=f"/{service.full_name}/{method.name}",
            request=GetMessageClass(method.input_type),
            behaviour=getattr(servicer, _snake(method.name)),
            listener=listener,
            max_request_bytes=max_request_bytes,
        )
        handlers[method.name] = _handler(method, bound)
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _handler(method: MethodDescriptor, bound: _Method) -> "grpc.RpcMethodHandler[Any, Any]":
    serializer = GetMessageClass(method.output_type).SerializeToString
    # Without a deserializer the behaviour gets the bytes.
    if not method.server_streaming:
        return grpc.unary_unary_rpc_method_handler(_unary(bound), response_serializer=serializer)
    if not method.client_streaming:
        return grpc.unary_stream_rpc_method_handler(_server_stream(bound), response_serializer=serializer)
    return grpc.stream_stream_rpc_method_handler(_both_streams(bound), response_serializer=serializer)


def _unary(method: _Method) -> Callable[[bytes, _Context], Awaitable[Any]]:
    async def handle(raw: bytes, context: _Context) -> Any:
        async with _answering(method, context) as call:
            return await method.behaviour(method.parse(raw), call)

    return handle


def _server_stream(method: _Method) -> Callable[[bytes, _Context], Awaitable[None]]:
    async def handle(raw: bytes, context: _Context) -> None:
        async with _answering(method, context) as call:
            await _send(method.behaviour(method.parse(raw), call), context)

    return handle


def _both_streams(method: _Method) -> Callable[[AsyncIterator[bytes], _Context], Awaitable[None]]:
    async def handle(raw_requests: AsyncIterator[bytes], context: _Context) -> None:
        async def requests() -> AsyncIterator[Message]:
            async for raw in raw_requests:
                yield method.parse(raw)

        async with _answering(method, context) as call:
            await _send(method.behaviour(requests(), call), context)

    return handle


async def _send(responses: Any, context: _Context) -> None:
    # A coroutine that writes, rather than an async generator that gRPC drives: gRPC leaves a
    # generator it was sending from to the garbage collector when the client goes away.
    async with aclosing(responses):
        async for response in responses:
            try:
                async with asyncio.timeout(SEND_TIMEOUT_S):
                    await context.write(response)
            except TimeoutError:
                raise DeadlineExceeded(
                    f"the client read nothing for {SEND_TIMEOUT_S:.0f} s", reason="CLIENT_NOT_READING"
                ) from None


@asynccontextmanager
async def _answering(method: _Method, context: _Context) -> AsyncIterator[Call]:
    """Lets the body answer a call; whatever it raises becomes a status with details."""
    try:
        authorise(method.path, method.listener)
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        yield Call(method.path, context.peer(), deadline)
    except LensdError as error:
        await _abort(context, error)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Raised by something below rather than by gRPC: re-raising it would leave the client waiting.
        await _abort(context, Cancelled("the server cancelled this call"))
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # the servicer's own fault, or that of what it calls
        await _abort(context, internal_failure(error, method.path.rpartition("/")[2]))


async def _abort(context: _Context, error: LensdError) -> None:
    status = to_status(error)
    await context.abort(code_of(error), status.message, trailing_metadata(error, status))
