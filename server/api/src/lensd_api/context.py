"""What an analyzer is handed beside its parameters."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from lensd_api.artifacts import (
    ArtifactStore,
    BlockingArtifactStore,
    BlockingCheckpoint,
    Checkpoint,
)
from lensd_api.model import BlockingModelHandle, ModelHandle

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class Workspace(Protocol):
    """Memory on a device, and turns on it, for work of the analyzer's own such as training."""

    @property
    def device(self) -> str:
        """What ``tensor.to`` takes: ``"cpu"``, ``"cuda:0"``."""
        ...

    async def compute(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Runs ``fn`` off the event loop in a turn on the device: no forward of the leased model runs
        beside it, and those that wait go first after it. So take little at a time: a step, not an epoch.

        See :meth:`Context.compute` for what ``fn`` must not do."""
        ...


class BlockingWorkspace(Protocol):
    """The same for plain generators."""

    @property
    def device(self) -> str:
        """See :attr:`Workspace.device`."""
        ...

    def compute(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """See :meth:`Workspace.compute`."""
        ...


class _Common(Protocol):
    @property
    def request_id(self) -> str:
        """Identifies the analysis in logs and for the caller."""
        ...

    @property
    def tensors(self) -> "Mapping[str, Tensor]":
        """The request's dense inputs by name, on the CPU, finite or not as sent."""
        ...

    @property
    def cancelled(self) -> bool:
        """True once nobody waits for the results any more: stop soon."""
        ...

    def progress(self, done: float, total: float = 0.0, *, stage: str = "", unit: str = "") -> None:
        """Tells the caller how far the analysis has come. Cheap; the newest one wins."""
        ...

    def lower_priority(self) -> None:
        """Rows of this analysis submitted from now on wait for interactive ones, whatever its caller
        asked for. For long work in many small forwards."""
        ...

    def warn(self, reason: str, message: str, *, item: str = "") -> None:
        """Tells the caller something about the results. ``reason`` is upper-snake and stable."""
        ...


class Context(_Common, Protocol):
    """For async analyzers."""

    @property
    def model(self) -> ModelHandle:
        """The leased model. Raises RequirementNotMet when the request named none."""
        ...

    @property
    def artifacts(self) -> ArtifactStore:
        """Named, versioned blobs that outlive the analysis."""
        ...

    @property
    def checkpoint(self) -> Checkpoint:
        """Where to leave what an identical request needs to go on, should this one be cut off."""
        ...

    async def compute(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Runs heavy non-model work off the event loop, never beside a forward pass on the
        same cores. Context variables are carried along.

        ``fn`` is given up, and the analysis with it, when others have waited for those cores as long as the
        server's ``limits.max_stall_s``. Within it ``compute`` and forwards would wait for themselves: on its
        thread they raise RuntimeError."""
        ...

    def workspace(
        self, size_bytes: int, *, device: Literal["model", "cpu"] = "model"
    ) -> AbstractAsyncContextManager[Workspace]:
        """``size_bytes`` on the leased model's device, set aside within its memory budget until the end.

        Raises Exhausted (``NO_ROOM``, with both numbers) on entering when they are not there. On the CPU
        nothing is set aside: there an analysis is bounded by what it estimates. Let go of what is on the
        device before the end.
        """
        ...


class BlockingContext(_Common, Protocol):
    """For plain generators, which run on a worker thread of their own."""

    @property
    def model(self) -> BlockingModelHandle:
        """The leased model. Raises RequirementNotMet when the request named none."""
        ...

    @property
    def artifacts(self) -> BlockingArtifactStore:
        """Named, versioned blobs that outlive the analysis."""
        ...

    @property
    def checkpoint(self) -> BlockingCheckpoint:
        """Where to leave what an identical request needs to go on, should this one be cut off."""
        ...

    def compute(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """Runs heavy torch work so that it never runs beside a forward pass on the same cores.

        See :meth:`Context.compute` for what ``fn`` must not do."""
        ...

    def workspace(
        self, size_bytes: int, *, device: Literal["model", "cpu"] = "model"
    ) -> AbstractContextManager[BlockingWorkspace]:
        """See :meth:`Context.workspace`."""
        ...
