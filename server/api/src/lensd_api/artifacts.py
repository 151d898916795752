"""Named, versioned, digest-checked blobs that analyzers store, such as a fitted probe.

``ctx.artifacts`` is what outlives an analysis, ``ctx.checkpoint`` what lets an identical request go
on where this one stopped. Both come in two faces: awaitable ones for async analyzers, whose loop no
disk may hold up, and ``Blocking`` ones for plain generators.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

#: What names of artifacts and blobs look like; none of them is ever a path.
NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}"


@dataclass(frozen=True, slots=True)
class ArtifactInfo:
    """Describes a stored artifact. ``sha256`` is of its blobs and metadata, ``created`` Unix seconds."""

    name: str
    version: int
    analyzer: str
    analyzer_version: str
    model: str
    model_revision: str
    sha256: str
    size_bytes: int
    created: float
    metadata: Mapping[str, Any]

    @property
    def reference(self) -> str:
        """``name@version``: this version and no other."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact with its contents, whose digests were checked when it was opened."""

    info: ArtifactInfo
    blobs: Mapping[str, bytes]


class ArtifactStore(Protocol):
    """The server's store as one analysis sees it; names match :data:`NAME_PATTERN`."""

    async def list(self) -> Sequence[ArtifactInfo]:
        """All artifacts, sorted by name, newest version first."""
        ...

    async def info(self, name: str) -> ArtifactInfo:
        """Describes ``name`` (newest) or ``name@version``. Raises UnknownArtifact."""
        ...

    async def open(self, name: str) -> Artifact:
        """Reads ``name`` (newest) or ``name@version``.

        Raises UnknownArtifact, and FailedPrecondition with the reason ``ARTIFACT_CORRUPT`` when a
        digest is wrong, ``ARTIFACT_OF_ANOTHER_MODEL`` when it is bound to another model or revision
        than this analysis runs on, ``ARTIFACT_OF_ANOTHER_VERSION`` when this plugin wrote it in a
        version that differs in more than its last number.
        """
        ...

    async def store(
        self, name: str, blobs: Mapping[str, bytes], metadata: Mapping[str, Any] | None = None
    ) -> ArtifactInfo:
        """Writes the next version of ``name``, all of it or nothing, bound to this analysis's model.

        ``metadata`` is JSON-like and small: callers see it. Raises InvalidRequest for a name that
        does not match, TooLarge beyond the server's limit, Exhausted when all artifacts together leave
        no room (``ARTIFACTS_FULL``) or the disk has none (``DISK_FULL``).
        """
        ...


class BlockingArtifactStore(Protocol):
    """The same, for plain generators."""

    def list(self) -> Sequence[ArtifactInfo]:
        """See :meth:`ArtifactStore.list`."""
        ...

    def info(self, name: str) -> ArtifactInfo:
        """See :meth:`ArtifactStore.info`."""
        ...

    def open(self, name: str) -> Artifact:
        """See :meth:`ArtifactStore.open`."""
        ...

    def store(
        self, name: str, blobs: Mapping[str, bytes], metadata: Mapping[str, Any] | None = None
    ) -> ArtifactInfo:
        """See :meth:`ArtifactStore.store`."""
        ...


class Checkpoint(Protocol):
    """Where an analysis may leave what an identical one needs to go on.

    Identical means: analyzer and its version, parameters, tensors and model revision. What was
    saved is discarded once an analysis completes.
    """

    async def load(self) -> Mapping[str, bytes]:
        """What was saved last; empty when there is nothing, or nothing sound."""
        ...

    async def save(self, blobs: Mapping[str, bytes]) -> None:
        """Replaces it at once, whenever the process dies. Raises TooLarge beyond the server's limit."""
        ...


class BlockingCheckpoint(Protocol):
    """The same, for plain generators."""

    def load(self) -> Mapping[str, bytes]:
        """See :meth:`Checkpoint.load`."""
        ...

    def save(self, blobs: Mapping[str, bytes]) -> None:
        """See :meth:`Checkpoint.save`."""
        ...
