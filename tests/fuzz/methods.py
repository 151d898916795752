"""Every method of both listeners, from the descriptors: a new one is fuzzed without being named here."""

from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc_channelz.v1 import channelz_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2

from lensd_server.rpc.listeners import SERVICES

_FOREIGN = (
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
    channelz_pb2.DESCRIPTOR.services_by_name["Channelz"],
)


@dataclass(frozen=True, slots=True)
class Method:
    """One method. ``ours``: of lensd's own contract, whose errors always carry details."""

    path: str
    request: type[Message]
    request_streaming: bool
    response_streaming: bool
    ours: bool

    @property
    def name(self) -> str:
        """Without its service."""
        return self.path.rpartition("/")[2]

    @property
    def is_watch(self) -> bool:
        """Whether it goes on until its caller leaves."""
        return self.name.startswith("Watch") or self.name == "Watch"


def _method(service: Any, method: Any, ours: bool) -> Method:
    return Method(
        path=f"/{service.full_name}/{method.name}",
        request=GetMessageClass(method.input_type),
        request_streaming=method.client_streaming,
        response_streaming=method.server_streaming,
        ours=ours,
    )


METHODS: tuple[Method, ...] = tuple(
    _method(service, method, ours)
    for services, ours in ((SERVICES, True), (_FOREIGN, False))
    for service in services
    for method in service.methods
)
BY_NAME = {method.name: method for method in METHODS if method.ours}
