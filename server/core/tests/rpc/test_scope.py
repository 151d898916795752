"""Every method has a scope, and admin methods answer on the admin listener only."""

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message_factory import GetMessageClass

from lensd_proto import v1
from lensd_server.access.caller import ANYBODY, Scope
from lensd_server.rpc.listeners import SERVICES
from lensd_server.rpc.scope import SCOPES, Listener, authorise

METHODS = {
    f"/{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods
}


def test_every_service_of_the_contract_is_served() -> None:
    import importlib
    import pkgutil

    declared: set[str] = set()
    for module in pkgutil.iter_modules(v1.__path__):
        if module.name.endswith("_pb2"):
            descriptor = importlib.import_module(f"lensd_proto.v1.{module.name}").DESCRIPTOR
            declared |= {service.full_name for service in descriptor.services_by_name.values()}
    assert declared == {service.full_name for service in SERVICES}


@pytest.mark.parametrize("method", sorted(name for name in METHODS if SCOPES[name] is Scope.ADMIN))
async def test_an_admin_method_is_refused_on_the_public_listener(
    served: Any, refusal: Callable[[Any], Any], method: str
) -> None:
    said = await refusal(_call(served.public, method))
    assert said.code is grpc.StatusCode.PERMISSION_DENIED
    assert said.reason == "ADMIN_LISTENER_ONLY"
    assert "admin listener" in said.message
    assert said.metadata == {"listener": "public", "required_listener": "admin"}


# The others go on for as long as the client likes.
ENDING = sorted(
    name for name in METHODS if not METHODS[name].client_streaming and not name.endswith("/WatchModels")
)


@pytest.mark.parametrize("method", ENDING)
async def test_no_method_is_refused_on_the_admin_listener(served: Any, method: str) -> None:
    code = grpc.StatusCode.OK
    try:
        call = _call(served.admin, method)
        if hasattr(call, "read"):
            async for _ in call:
                pass
        else:
            await call
    except grpc.aio.AioRpcError as error:
        code = error.code()
    assert code is not grpc.StatusCode.PERMISSION_DENIED


def test_a_method_outside_the_table_is_open_to_nobody() -> None:
    from lensd_api.errors import PermissionDenied

    for listener in Listener:
        with pytest.raises(PermissionDenied, match="nobody"):
            authorise("/lensd.v1.AnalysisService/Forgotten", listener, ANYBODY)


def _call(channel: grpc.aio.Channel, name: str) -> Any:
    method = METHODS[name]
    request, response = GetMessageClass(method.input_type), GetMessageClass(method.output_type)
    build = channel.unary_stream if method.server_streaming else channel.unary_unary
    return build(
        name, request_serializer=request.SerializeToString, response_deserializer=response.FromString
    )(request())
