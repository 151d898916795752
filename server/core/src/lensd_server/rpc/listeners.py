"""The two gRPC servers: public and admin, the same services behind different doors."""

from collections.abc import Sequence
from dataclasses import dataclass

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lensd_proto.v1 import analysis_pb2, analyzers_pb2, artifacts_pb2, models_pb2, server_pb2
from lensd_server.rpc.analysis import AnalysisServicer
from lensd_server.rpc.analyzers import AnalyzerServicer
from lensd_server.rpc.artifact_service import ArtifactServicer
from lensd_server.rpc.dispatch import service_handler
from lensd_server.rpc.model_service import ModelServicer
from lensd_server.rpc.scope import Listener
from lensd_server.rpc.server_service import ServerServicer
from lensd_server.rpc.wire import TRANSPORT_BYTES
from lensd_server.settings import split_address

#: Every service of the contract.
SERVICES: tuple[ServiceDescriptor, ...] = (
    analysis_pb2.DESCRIPTOR.services_by_name["AnalysisService"],
    analyzers_pb2.DESCRIPTOR.services_by_name["AnalyzerService"],
    models_pb2.DESCRIPTOR.services_by_name["ModelService"],
    artifacts_pb2.DESCRIPTOR.services_by_name["ArtifactService"],
    server_pb2.DESCRIPTOR.services_by_name["ServerService"],
)

#: Calls at once, watches and probes included: only an outer guard, whose refusal has no details.
_MAX_CALLS = 4096

_OPTIONS: tuple[tuple[str, int], ...] = (
    # On by default: a second server would silently take half of the traffic.
    ("grpc.so_reuseport", 0),
    # The application's own limit is lower and its error says more.
    ("grpc.max_receive_message_length", TRANSPORT_BYTES),
    ("grpc.max_send_message_length", TRANSPORT_BYTES),
    # The default closes connections of clients that ping more than every five minutes.
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


class AddressInUse(Exception):
    """A listener could not be opened; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class Servicers:
    """One object a service."""

    analysis: AnalysisServicer
    analyzers: AnalyzerServicer
    models: ModelServicer
    artifacts: ArtifactServicer
    server: ServerServicer

    def of(self, service: ServiceDescriptor) -> object:
        """The servicer that answers for ``service``."""
        by_name = {
            "AnalysisService": self.analysis,
            "AnalyzerService": self.analyzers,
            "ModelService": self.models,
            "ArtifactService": self.artifacts,
            "ServerService": self.server,
        }
        return by_name[service.name]


def build_server(
    listener: Listener,
    servicers: Servicers,
    health_servicer: health_pb2_grpc.HealthServicer,
    *,
    max_request_bytes: int,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
) -> grpc.aio.Server:
    """A server that is not listening yet."""
    server = grpc.aio.server(options=_OPTIONS, interceptors=interceptors, maximum_concurrent_rpcs=_MAX_CALLS)
    names = [service.full_name for service in SERVICES]
    server.add_generic_rpc_handlers(
        tuple(
            service_handler(service, servicers.of(service), listener, max_request_bytes)
            for service in SERVICES
        )
    )
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    names += [health_pb2.DESCRIPTOR.services_by_name["Health"].full_name, reflection.SERVICE_NAME]
    if listener is Listener.ADMIN:
        channelz.add_channelz_servicer(server)
        names.append("grpc.channelz.v1.Channelz")
    reflection.enable_server_reflection(names, server)
    return server


def listen(server: grpc.aio.Server, address: str, setting: str) -> str:
    """Binds ``server`` and answers where it listens, port 0 replaced. Raises AddressInUse."""
    host, _ = split_address(address)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise AddressInUse(
            f"cannot listen on {address} (setting {setting}): it is in use or not an address of this "
            "machine; choose another one, or port 0 for a free one"
        ) from error
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
