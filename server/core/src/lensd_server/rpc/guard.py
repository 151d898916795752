"""The one choke point: every call of every service passes it, health, reflection and channelz included.

What is not in the table of scopes is refused, and so is whoever cannot say who they are. Behind it a
call knows its caller by :func:`admitted`; where there is none, nothing is served.
"""

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Collection
from contextlib import aclosing
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from lensd_api.errors import LensdError, PermissionDenied
from lensd_server.access.access import Access
from lensd_server.access.caller import ANYBODY, Caller, Scope
from lensd_server.rpc.scope import PROBES, SCOPES, Listener, authorise
from lensd_server.rpc.status import abort, final_code

_Context = grpc.aio.ServicerContext[Any, Any]

#: What gRPC calls a handler, by whether requests and answers are streams.
KINDS = {
    (False, False): "unary_unary",
    (False, True): "unary_stream",
    (True, False): "stream_unary",
    (True, True): "stream_stream",
}
_CERTIFICATE_NAMES = ("x509_subject_alternative_name", "x509_common_name")


@dataclass(slots=True)
class Admitted:
    """A call that was let in."""

    caller: Caller
    scope: Scope
    #: Raises when it would no longer be let in: a stream outlives the token that opened it.
    check_again: Callable[[], None]
    #: What it is about, for the audit: set by whoever reads the request.
    subject: str = ""


_admitted: ContextVar[Admitted] = ContextVar("lensd_admitted")


def admitted() -> Admitted:
    """The call that this task serves. Raises PermissionDenied when it did not pass the guard."""
    try:
        return _admitted.get()
    except LookupError:
        raise PermissionDenied("a call that nobody let in", reason="METHOD_NOT_OPEN") from None


class Guard(grpc.aio.ServerInterceptor):
    """Stands before every handler of one listener. ``on_socket``: it listens on a Unix socket."""

    def __init__(self, listener: Listener, access: Access, *, on_socket: bool) -> None:
        self._listener, self._access, self._on_socket = listener, access, on_socket

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """The handler for a call, behind the guard; of the kind it was."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        kind = KINDS[handler.request_streaming, handler.response_streaming]
        guarded = self._guarded(handler_call_details.method, getattr(handler, kind))
        return getattr(grpc, f"{kind}_rpc_method_handler")(
            guarded,
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _guarded(self, method: str, behaviour: Any) -> Callable[[Any, _Context], Awaitable[Any]]:
        async def answer(request: Any, context: _Context) -> Any:
            try:
                call = self._admit(method, context)
            except LensdError as refused:
                return await abort(context, refused)
            _admitted.set(call)
            if call.scope is Scope.ADMIN:
                return await self._written_down(method, call, behaviour, request, context)
            return await run(behaviour, request, context)

        return answer

    async def _written_down(
        self, method: str, call: Admitted, behaviour: Any, request: Any, context: _Context
    ) -> Any:
        code = "UNKNOWN"
        try:
            answer = await run(behaviour, request, context)
            code = final_code(context) or "OK"
            return answer
        except asyncio.CancelledError:
            code = "CANCELLED"
            raise
        except BaseException:
            code = final_code(context) or "UNKNOWN"
            raise
        finally:
            self._access.audit.acted(
                caller=call.caller.name, peer=context.peer(), method=method, subject=call.subject, code=code
            )

    def _admit(self, method: str, context: _Context) -> Admitted:
        """Raises Unauthenticated or PermissionDenied, and has it written down."""
        caller = ANYBODY
        try:
            if not (method in PROBES and self._access.open_health):
                caller = self._identify(context)
            authorise(method, self._listener, caller)
        except LensdError as refused:
            self._access.audit.refused(caller=caller.name, peer=context.peer(), method=method, error=refused)
            raise
        return Admitted(caller, SCOPES[method], lambda: self._check_again(method, context))

    def _check_again(self, method: str, context: _Context) -> None:
        self._admit(method, context)

    def _identify(self, context: _Context) -> Caller:
        shown = [str(value) for key, value in context.invocation_metadata() or () if key == "authorization"]
        return self._access.authenticator.identify(shown, _names(context), on_socket=self._on_socket)


async def run(behaviour: Any, request: Any, context: Any) -> Any:
    """What ``behaviour`` answers; a stream is written and answered by nothing."""
    if not inspect.isasyncgenfunction(behaviour):
        return await behaviour(request, context)
    async with aclosing(behaviour(request, context)) as responses:
        async for response in responses:
            await context.write(response)
    return None


def _names(context: _Context) -> Collection[str]:
    """Whom the caller's certificate is for; gRPC has checked it. Nothing without one."""
    shown = context.auth_context()
    return {name.decode("utf-8", "replace") for kind in _CERTIFICATE_NAMES for name in shown.get(kind, ())}
