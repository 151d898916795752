"""Who may call what: one table for every method of both listeners, and nothing outside it is served."""

from enum import StrEnum

from lensd_api.errors import PermissionDenied
from lensd_server.access.caller import Caller, Scope


class Listener(StrEnum):
    """Through which door a call came. Methods of admin scope answer on the admin listener only."""

    PUBLIC = "public"
    ADMIN = "admin"


#: By full method name, as gRPC spells it.
SCOPES: dict[str, Scope] = {
    "/lensd.v1.AnalysisService/Analyze": Scope.ANALYZE,
    "/lensd.v1.AnalysisService/AnalyzeMany": Scope.ANALYZE,
    "/lensd.v1.AnalyzerService/ListAnalyzers": Scope.READ,
    "/lensd.v1.AnalyzerService/GetAnalyzer": Scope.READ,
    "/lensd.v1.AnalyzerService/ReleasePlugin": Scope.ADMIN,
    "/lensd.v1.ModelService/ListModels": Scope.READ,
    "/lensd.v1.ModelService/GetModel": Scope.READ,
    "/lensd.v1.ModelService/LoadModel": Scope.ADMIN,
    "/lensd.v1.ModelService/UnloadModel": Scope.ADMIN,
    "/lensd.v1.ModelService/WatchModels": Scope.READ,
    "/lensd.v1.ArtifactService/ListArtifacts": Scope.READ,
    "/lensd.v1.ArtifactService/GetArtifact": Scope.READ,
    "/lensd.v1.ArtifactService/DeleteArtifact": Scope.ADMIN,
    "/lensd.v1.ServerService/GetServerInfo": Scope.READ,
    "/lensd.v1.ServerService/GetLoad": Scope.READ,
    "/lensd.v1.ServerService/ListAnalyses": Scope.ADMIN,
    "/lensd.v1.ServerService/CancelAnalysis": Scope.ADMIN,
    "/grpc.health.v1.Health/Check": Scope.READ,
    "/grpc.health.v1.Health/Watch": Scope.READ,
    "/grpc.health.v1.Health/List": Scope.READ,
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Scope.READ,
    "/grpc.channelz.v1.Channelz/GetTopChannels": Scope.ADMIN,
    "/grpc.channelz.v1.Channelz/GetServers": Scope.ADMIN,
    "/grpc.channelz.v1.Channelz/GetServer": Scope.ADMIN,
    "/grpc.channelz.v1.Channelz/GetServerSockets": Scope.ADMIN,
    "/grpc.channelz.v1.Channelz/GetChannel": Scope.ADMIN,
    "/grpc.channelz.v1.Channelz/GetSubchannel": Scope.ADMIN,
    "/grpc.channelz.v1.Channelz/GetSocket": Scope.ADMIN,
}

#: What probes ask; open to everybody unless `auth.open_health` is off.
PROBES = frozenset({"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"})


def authorise(method: str, listener: Listener, caller: Caller) -> None:
    """Raises PermissionDenied unless ``caller`` may call ``method`` through ``listener``."""
    scope = SCOPES.get(method)
    if scope is None:
        raise PermissionDenied(f"{method} is open to nobody", reason="METHOD_NOT_OPEN")
    name = method.rpartition(".")[2]
    if scope is Scope.ADMIN and listener is not Listener.ADMIN:
        raise PermissionDenied(
            f"{name} is an admin method: call it on the admin listener "
            "(`lensd serve --admin-listen`, 127.0.0.1:50052 unless configured), not on the public one",
            reason="ADMIN_LISTENER_ONLY",
            metadata={"listener": listener.value, "required_listener": Listener.ADMIN.value},
        )
    if scope not in caller.scopes:
        has = ", ".join(sorted(caller.scopes)) or "none"
        raise PermissionDenied(
            f"{name} needs scope {scope.value}, and {caller.name} has {has}: the server's operator gives scopes, "
            f"with `lensd token new NAME --scope {scope.value}` or in [auth.certificates]",
            reason="SCOPE_MISSING",
            metadata={"caller": caller.name, "required_scope": scope.value},
        )
