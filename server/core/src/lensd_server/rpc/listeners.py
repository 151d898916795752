"""The two gRPC servers: public and admin, the same services behind different doors."""

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import grpc.aio
from google.protobuf.descriptor import ServiceDescriptor
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from lensd_proto.v1 import analysis_pb2, analyzers_pb2, artifacts_pb2, models_pb2, server_pb2
from lensd_server.access.access import Access
from lensd_server.access.certificates import Certificates
from lensd_server.addresses import socket_path, split_address
from lensd_server.rpc.analysis import AnalysisServicer
from lensd_server.rpc.analyzers import AnalyzerServicer
from lensd_server.rpc.artifact_service import ArtifactServicer
from lensd_server.rpc.dispatch import service_handler
from lensd_server.rpc.foreign import Foreign
from lensd_server.rpc.guard import Guard
from lensd_server.rpc.model_service import ModelServicer
from lensd_server.rpc.readers import Readers
from lensd_server.rpc.scope import Listener
from lensd_server.rpc.server_service import ServerServicer
from lensd_server.rpc.wire import TRANSPORT_BYTES

#: Every service of the contract.
SERVICES: tuple[ServiceDescriptor, ...] = (
    analysis_pb2.DESCRIPTOR.services_by_name["AnalysisService"],
    analyzers_pb2.DESCRIPTOR.services_by_name["AnalyzerService"],
    models_pb2.DESCRIPTOR.services_by_name["ModelService"],
    artifacts_pb2.DESCRIPTOR.services_by_name["ArtifactService"],
    server_pb2.DESCRIPTOR.services_by_name["ServerService"],
)

#: Calls at once, watches and probes included, and of them on one connection: only outer guards, of which
#: one refuses without details and the other lets the client wait.
_MAX_CALLS = 4096
_MAX_CALLS_PER_CONNECTION = 1024

_OPTIONS: tuple[tuple[str, int], ...] = (
    # On by default: a second server would silently take half of the traffic.
    ("grpc.so_reuseport", 0),
    # The application's own limit is lower and its error says more.
    ("grpc.max_receive_message_length", TRANSPORT_BYTES),
    ("grpc.max_send_message_length", TRANSPORT_BYTES),
    ("grpc.max_concurrent_streams", _MAX_CALLS_PER_CONNECTION),
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
    access: Access,
    readers: Readers,
    on_socket: bool = False,
    interceptors: Sequence[grpc.aio.ServerInterceptor] = (),
) -> grpc.aio.Server:
    """A server that is not listening yet. ``interceptors`` see what the guard refuses, too."""
    guard = Guard(listener, access, on_socket=on_socket)
    server = grpc.aio.server(
        options=_OPTIONS,
        interceptors=[*interceptors, guard, readers, Foreign()],
        maximum_concurrent_rpcs=_MAX_CALLS,
    )
    names = [service.full_name for service in SERVICES]
    server.add_generic_rpc_handlers(
        tuple(
            service_handler(service, servicers.of(service), max_request_bytes, access.quotas)
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


def listen(
    server: grpc.aio.Server, address: str, setting: str, certificates: Certificates | None = None
) -> str:
    """Binds ``server`` and answers where it listens, port 0 replaced. Raises AddressInUse.

    With ``certificates`` it speaks TLS; not on a Unix socket, which only the owner of this process may open.
    """
    if (path := socket_path(address)) is not None:
        _bind_socket(server, path, setting)
        return address
    host, _ = split_address(address)
    try:
        if certificates is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, certificates.credentials())
    except RuntimeError as error:
        raise AddressInUse(
            f"cannot listen on {address} (setting {setting}): it is in use or not an address of this "
            "machine; choose another one, or port 0 for a free one"
        ) from error
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bind_socket(server: grpc.aio.Server, path: Path, setting: str) -> None:
    if _answers(path):
        # gRPC would unlink it and take its callers over.
        raise AddressInUse(
            f"cannot listen on {path} (setting {setting}): another process does; stop that one"
        )
    mask = os.umask(0o177)  # from the start: mended afterwards, it would have been open for a moment
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as error:
        raise AddressInUse(
            f"cannot listen on {path} (setting {setting}): is its folder there, and may this process write to it?"
        ) from error
    finally:
        os.umask(mask)


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True
