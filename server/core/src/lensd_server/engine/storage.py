"""What an analysis may keep on disk: the server's artifacts and checkpoints, bound to one request."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import structlog

from lensd_api import ArtifactInfo, Exhausted
from lensd_api.artifacts import Artifact
from lensd_server.engine.artifact_folder import FolderShelf
from lensd_server.engine.artifact_remote import RemoteShelf
from lensd_server.engine.artifacts import Artifacts, Origin
from lensd_server.engine.checkpoints import DiskCheckpoints
from lensd_server.engine.disk import is_full
from lensd_server.settings import LimitSettings

_log = structlog.get_logger("lensd.storage")


@dataclass(frozen=True, slots=True)
class Storage:
    """What outlives analyses, shared by all of them."""

    artifacts: Artifacts
    checkpoints: DiskCheckpoints

    @classmethod
    def under(cls, folder: Path, limits: LimitSettings, artifact_store: str | None = None) -> Self:
        """Both kinds below ``folder``, which need not exist; artifacts at the URL ``artifact_store`` if given.

        Raises WrongStore.
        """
        size = limits.max_artifact_bytes
        shelf = RemoteShelf(artifact_store) if artifact_store else FolderShelf(folder / "artifacts")
        return cls(
            Artifacts(shelf, size, max_bytes_together=limits.max_artifacts_bytes),
            DiskCheckpoints(folder / "checkpoints", size, limits.max_checkpoints),
        )


@dataclass(frozen=True, slots=True)
class BlockingArtifacts:
    """A :class:`lensd_api.BlockingArtifactStore`: the store as one analysis sees it."""

    shared: Artifacts
    origin: Origin

    def list(self) -> Sequence[ArtifactInfo]:
        """See :meth:`lensd_api.ArtifactStore.list`."""
        return self.shared.list()

    def info(self, name: str) -> ArtifactInfo:
        """See :meth:`lensd_api.ArtifactStore.info`."""
        return self.shared.info(name)

    def open(self, name: str) -> Artifact:
        """See :meth:`lensd_api.ArtifactStore.open`."""
        return self.shared.open(name, self.origin)

    def store(
        self, name: str, blobs: Mapping[str, bytes], metadata: Mapping[str, Any] | None = None
    ) -> ArtifactInfo:
        """See :meth:`lensd_api.ArtifactStore.store`."""
        try:
            return self.shared.store(name, blobs, metadata, self.origin)
        except OSError as error:
            if not is_full(error):
                raise
            _log.error("no room left for artifacts", artifact=name, problem=error.strerror)
            raise Exhausted(
                f"the server's disk has no room for artifact {name}; nothing was stored", reason="DISK_FULL"
            ) from error


@dataclass(frozen=True, slots=True)
class AsyncArtifacts:
    """A :class:`lensd_api.ArtifactStore`: the same, off the event loop."""

    blocking: BlockingArtifacts

    async def list(self) -> Sequence[ArtifactInfo]:
        """See :meth:`lensd_api.ArtifactStore.list`."""
        return await asyncio.to_thread(self.blocking.list)

    async def info(self, name: str) -> ArtifactInfo:
        """See :meth:`lensd_api.ArtifactStore.info`."""
        return await asyncio.to_thread(self.blocking.info, name)

    async def open(self, name: str) -> Artifact:
        """See :meth:`lensd_api.ArtifactStore.open`."""
        return await asyncio.to_thread(self.blocking.open, name)

    async def store(
        self, name: str, blobs: Mapping[str, bytes], metadata: Mapping[str, Any] | None = None
    ) -> ArtifactInfo:
        """See :meth:`lensd_api.ArtifactStore.store`."""
        return await asyncio.to_thread(self.blocking.store, name, blobs, metadata)


class BlockingCheckpoint:
    """A :class:`lensd_api.BlockingCheckpoint` of one request of ``caller``.

    ``make_key`` is called once, at first use: most analyses leave no checkpoint, and theirs would be
    a digest of all their parameters and tensors for nothing.
    """

    def __init__(self, disk: DiskCheckpoints, make_key: Callable[[], str], caller: str = "") -> None:
        self._disk, self._make_key, self._caller = disk, make_key, caller
        self._key: str | None = None

    def load(self) -> Mapping[str, bytes]:
        """See :meth:`lensd_api.Checkpoint.load`."""
        return self._disk.load(self._known_key())

    def save(self, blobs: Mapping[str, bytes]) -> None:
        """See :meth:`lensd_api.Checkpoint.save`. A full disk costs the checkpoint, not the analysis."""
        try:
            self._disk.save(self._known_key(), blobs, self._caller)
        except OSError as error:
            if not is_full(error):
                raise
            _log.error("no room left for a checkpoint", problem=error.strerror)

    def discard(self) -> None:
        """The request is complete: nobody will go on with it."""
        if self._key is not None:
            self._disk.discard(self._key)

    def _known_key(self) -> str:
        if self._key is None:
            self._key = self._make_key()
        return self._key


@dataclass(frozen=True, slots=True)
class AsyncCheckpoint:
    """A :class:`lensd_api.Checkpoint`: the same, off the event loop."""

    blocking: BlockingCheckpoint

    async def load(self) -> Mapping[str, bytes]:
        """See :meth:`lensd_api.Checkpoint.load`."""
        return await asyncio.to_thread(self.blocking.load)

    async def save(self, blobs: Mapping[str, bytes]) -> None:
        """See :meth:`lensd_api.Checkpoint.save`."""
        await asyncio.to_thread(self.blocking.save, blobs)
