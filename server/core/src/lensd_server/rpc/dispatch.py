"""The one way from gRPC to a servicer and back: parsing, errors, sending.

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

from lensd_api.errors import Cancelled, LensdError
from lensd_server.access.caller import Scope
from lensd_server.access.quotas import Quotas
from lensd_server.engine.events import caller_of
from lensd_server.engine.faults import internal_failure
from lensd_server.rpc import wire
from lensd_server.rpc.guard import admitted
from lensd_server.rpc.status import abort

_NAMED = re.compile(r"[A-Za-z0-9._:@-]{1,140}")

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
    #: Raises when it would no longer be let in. A stream asks before it starts something new.
    check_again: Callable[[], None] = lambda: None

    @property
    def caller(self) -> str:
        """Whose quota it uses."""
        return caller_of(self.identity, self.peer)


@dataclass(frozen=True, slots=True)
class _Method:
    path: str
    request: type[Message]
    behaviour: Callable[[Any, Call], Any]
    max_request_bytes: int
    quotas: Quotas

    def parse(self, raw: bytes, call: Call) -> Message:
        self.quotas.spend_bytes(call.caller, len(raw))
        message = wire.parse(raw, self.request, self.max_request_bytes)
        admitted().subject = _subject(message)
        return message


def service_handler(
    service: ServiceDescriptor, servicer: object, max_request_bytes: int, quotas: Quotas
) -> grpc.GenericRpcHandler:
    """Serves every method of ``service``; one that ``servicer`` lacks is an error at start."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
    for method in service.methods:
        bound = _Method(
            path=f"/{service.full_name}/{method.name}",
            request=GetMessageClass(method.input_type),
            behaviour=getattr(servicer, _snake(method.name)),
            max_request_bytes=max_request_bytes,
            quotas=quotas,
        )
        handlers[method.name] = _handler(method, bound)
    return grpc.method_handlers_generic_handler(service.full_name, handlers)


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def _handler(method: MethodDescriptor, bound: _Method) -> "grpc.RpcMethodHandler[Any, Any]":
    # Without serializers the behaviour gets bytes and returns bytes.
    if not method.server_streaming:
        return grpc.unary_unary_rpc_method_handler(_unary(bound))
    if not method.client_streaming:
        return grpc.unary_stream_rpc_method_handler(_server_stream(bound))
    return grpc.stream_stream_rpc_method_handler(_both_streams(bound))


def _unary(method: _Method) -> Callable[[bytes, _Context], Awaitable[Any]]:
    async def handle(raw: bytes, context: _Context) -> Any:
        async with _answering(method, context) as call:
            return _pack(method, await method.behaviour(method.parse(raw, call), call), call)

    return handle


def _server_stream(method: _Method) -> Callable[[bytes, _Context], Awaitable[None]]:
    async def handle(raw: bytes, context: _Context) -> None:
        async with _answering(method, context) as call:
            await _send(method, method.behaviour(method.parse(raw, call), call), call, context)

    return handle


def _both_streams(method: _Method) -> Callable[[AsyncIterator[bytes], _Context], Awaitable[None]]:
    async def handle(raw_requests: AsyncIterator[bytes], context: _Context) -> None:
        async def requests(call: Call) -> AsyncIterator[Message]:
            async for raw in raw_requests:
                yield method.parse(raw, call)

        async with _answering(method, context) as call:
            await _send(method, method.behaviour(requests(call), call), call, context)

    return handle


async def _send(method: _Method, responses: Any, call: Call, context: _Context) -> None:
    # A coroutine that writes, rather than an async generator that gRPC drives: gRPC leaves a
    # generator it was sending from to the garbage collector when the client goes away.
    async with aclosing(responses):
        async for response in responses:
            await context.write(_pack(method, response, call))


def _pack(method: _Method, response: Message, call: Call) -> bytes:
    raw = response.SerializeToString()
    method.quotas.spend_bytes(call.caller, len(raw))
    return raw


def _subject(message: Message) -> str:
    """What a request names, for the audit; text that could be no name is left out."""
    fields = ("name", "distribution", "request_id")
    named = next((str(value) for field in fields if (value := getattr(message, field, ""))), "")
    return named if _NAMED.fullmatch(named) else ""


@asynccontextmanager
async def _answering(method: _Method, context: _Context) -> AsyncIterator[Call]:
    """Lets the body answer a call; whatever it raises becomes a status with details."""
    try:
        let_in = admitted()
        remaining = context.time_remaining()
        deadline = None if remaining is None else time.monotonic() + remaining
        call = Call(method.path, context.peer(), deadline, let_in.caller.name, let_in.check_again)
        if let_in.scope is Scope.READ:
            method.quotas.check_bytes(call.caller)
        yield call
    except LensdError as error:
        await abort(context, error)
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # Raised by something below rather than by gRPC: re-raising it would leave the client waiting.
        await abort(context, Cancelled("the server cancelled this call"))
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # the servicer's own fault, or that of what it calls
        await abort(context, internal_failure(error, method.path.rpartition("/")[2]))
