"""Who may call what: one table for every method, and nothing outside it is served."""

from enum import StrEnum

from lensd_api.errors import PermissionDenied


class Scope(StrEnum):
    """PUBLIC methods answer on both listeners, ADMIN ones on the admin listener only."""

    PUBLIC = "public"
    ADMIN = "admin"


class Listener(StrEnum):
    """Through which door a call came."""

    PUBLIC = "public"
    ADMIN = "admin"


#: By full method name, as gRPC spells it.
SCOPES: dict[str, Scope] = {
    "/lensd.v1.AnalysisService/Analyze": Scope.PUBLIC,
    "/lensd.v1.AnalysisService/AnalyzeMany": Scope.PUBLIC,
    "/lensd.v1.AnalyzerService/ListAnalyzers": Scope.PUBLIC,
    "/lensd.v1.AnalyzerService/GetAnalyzer": Scope.PUBLIC,
    "/lensd.v1.ModelService/ListModels": Scope.PUBLIC,
    "/lensd.v1.ModelService/GetModel": Scope.PUBLIC,
    "/lensd.v1.ModelService/LoadModel": Scope.ADMIN,
    "/lensd.v1.ModelService/UnloadModel": Scope.ADMIN,
    "/lensd.v1.ModelService/WatchModels": Scope.PUBLIC,
    "/lensd.v1.ArtifactService/ListArtifacts": Scope.PUBLIC,
    "/lensd.v1.ArtifactService/GetArtifact": Scope.PUBLIC,
    "/lensd.v1.ArtifactService/DeleteArtifact": Scope.ADMIN,
    "/lensd.v1.ServerService/GetServerInfo": Scope.PUBLIC,
    "/lensd.v1.ServerService/GetLoad": Scope.PUBLIC,
    "/lensd.v1.ServerService/ListAnalyses": Scope.ADMIN,
    "/lensd.v1.ServerService/CancelAnalysis": Scope.ADMIN,
}


def authorise(method: str, listener: Listener) -> None:
    """Raises PermissionDenied unless ``method`` may be called through ``listener``."""
    scope = SCOPES.get(method)
    if scope is Scope.PUBLIC or (scope is Scope.ADMIN and listener is Listener.ADMIN):
        return
    if scope is None:
        raise PermissionDenied(f"{method} is open to nobody", reason="METHOD_NOT_OPEN")
    raise PermissionDenied(
        f"{method.rpartition('.')[2]} is an admin method: call it on the admin listener "
        "(`lensd serve --admin-listen`, 127.0.0.1:50052 unless configured), not on the public one",
        reason="ADMIN_LISTENER_ONLY",
        metadata={"listener": listener.value, "required_listener": Listener.ADMIN.value},
    )
