"""What the RPC layer asks of the engine, so that it can be tested without one."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from lensd_api.artifacts import ArtifactInfo
from lensd_server.engine.events import Executor, LoadStep, ModelStatus


class Models(Protocol):
    """The configured models."""

    def statuses(self) -> Sequence[ModelStatus]:
        """Every model, sorted by name."""
        ...

    def status(self, name: str) -> ModelStatus:
        """One model. Raises UnknownModel."""
        ...

    def load(self, name: str) -> AsyncIterator[LoadStep]:
        """Makes it resident. Raises UnknownModel, LoadFailed."""
        ...

    async def unload(self, name: str) -> ModelStatus:
        """Waits for its analyses and frees its memory. Raises UnknownModel."""
        ...

    def watch(self) -> AsyncIterator[ModelStatus]:
        """The state of every model, then each change."""
        ...


class Artifacts(Protocol):
    """The store as an operator uses it."""

    def list(self) -> Sequence[ArtifactInfo]:
        """All artifacts, sorted by name, newest version first."""
        ...

    def info(self, name: str) -> ArtifactInfo:
        """Describes ``name`` (newest) or ``name@version``. Raises UnknownArtifact."""
        ...

    def delete(self, name: str) -> None:
        """Deletes ``name@version``. Raises UnknownArtifact."""
        ...


class Running(Protocol):
    """An analysis that runs now."""

    @property
    def request_id(self) -> str:
        """Its identifier."""
        ...

    @property
    def analyzer(self) -> str:
        """The name its analyzer answers to."""
        ...

    @property
    def model(self) -> str:
        """Name of its model, or nothing."""
        ...

    @property
    def age_s(self) -> float:
        """How long it has been running."""
        ...

    @property
    def pending_rows(self) -> int:
        """Rows of it that wait or run."""
        ...

    @property
    def peer(self) -> str:
        """Address of the caller."""
        ...

    @property
    def identity(self) -> str:
        """Who the caller is, or nothing."""
        ...


class Analyses(Executor, Protocol):
    """The executor as an operator sees it."""

    def running(self) -> Sequence[Running]:
        """Analyses in progress, oldest first."""
        ...

    def cancel(self, request_id: str) -> bool:
        """Ends an analysis; False when there is none of that name."""
        ...
