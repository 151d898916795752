"""Named, versioned, digest-checked blobs that analyzers store, such as a fitted probe."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class ArtifactInfo:
    """Describes a stored artifact. ``sha256`` is of its contents, ``created`` Unix seconds."""

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


class ArtifactStore(Protocol):
    """The server's store. Names match ``[A-Za-z0-9][A-Za-z0-9._-]{0,127}``."""

    def list(self) -> Sequence[ArtifactInfo]:
        """All artifacts, sorted by name, newest version first."""
        ...

    def info(self, name: str) -> ArtifactInfo:
        """Describes ``name`` (newest) or ``name@version``. Raises UnknownArtifact."""
        ...
