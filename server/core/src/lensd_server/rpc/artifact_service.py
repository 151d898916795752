"""ArtifactService: what analyzers have stored, by description only."""

import asyncio

from lensd_api.artifacts import ArtifactInfo
from lensd_api.errors import FieldViolation, InvalidRequest
from lensd_proto.v1 import artifacts_pb2
from lensd_server.rpc import wire
from lensd_server.rpc.dispatch import Call
from lensd_server.rpc.ports import Artifacts
from lensd_server.rpc.values import to_struct


class ArtifactServicer:
    """Answers from the store, whose disk is read off the event loop."""

    def __init__(self, store: Artifacts) -> None:
        self._store = store

    async def list_artifacts(
        self, message: artifacts_pb2.ListArtifactsRequest, call: Call
    ) -> artifacts_pb2.ListArtifactsResponse:
        """Every artifact, without what its analyzer says about it."""
        infos = await asyncio.to_thread(self._store.list)
        return artifacts_pb2.ListArtifactsResponse(artifacts=[_artifact(info) for info in infos])

    async def get_artifact(
        self, message: artifacts_pb2.GetArtifactRequest, call: Call
    ) -> artifacts_pb2.GetArtifactResponse:
        """One artifact."""
        _check(message.name, version_needed=False)
        info = await asyncio.to_thread(self._store.info, message.name)
        artifact = _artifact(info)
        artifact.metadata.CopyFrom(to_struct(info.metadata))
        return artifacts_pb2.GetArtifactResponse(artifact=artifact)

    async def delete_artifact(
        self, message: artifacts_pb2.DeleteArtifactRequest, call: Call
    ) -> artifacts_pb2.DeleteArtifactResponse:
        """Removes one version."""
        _check(message.name, version_needed=True)
        await asyncio.to_thread(self._store.delete, message.name)
        return artifacts_pb2.DeleteArtifactResponse()


def _check(name: str, *, version_needed: bool) -> None:
    bare, separator, version = name.partition("@")
    wire.check_name(bare)
    if (separator or version_needed) and not (version.isascii() and version.isdecimal()):
        description = "must be name@version, with a version such as 1"
        raise InvalidRequest(f"name: {description}", violations=[FieldViolation("name", description)])


def _artifact(info: ArtifactInfo) -> artifacts_pb2.Artifact:
    artifact = artifacts_pb2.Artifact(
        name=info.name,
        version=info.version,
        analyzer=info.analyzer,
        analyzer_version=info.analyzer_version,
        model=info.model,
        model_revision=info.model_revision,
        sha256=info.sha256,
        bytes=info.size_bytes,
    )
    artifact.create_time.FromNanoseconds(round(info.created * 1e9))
    return artifact
