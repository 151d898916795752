"""What an analyzer is handed beside its parameters, in its two faces."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from torch import Tensor

from lensd_api import RequirementNotMet
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.channel import Channel
from lensd_server.engine.events import Priority, Progress, Warned
from lensd_server.engine.handle import AsyncHandle, BlockingHandle
from lensd_server.engine.plain import text
from lensd_server.engine.storage import (
    AsyncArtifacts,
    AsyncCheckpoint,
    BlockingArtifacts,
    BlockingCheckpoint,
)
from lensd_server.engine.workspace import AsyncWorkspace, BlockingWorkspace, Workplaces

T = TypeVar("T")
H = TypeVar("H", AsyncHandle, BlockingHandle)

#: Warnings are not waited for, so their number is bounded.
MAX_WARNINGS = 256
#: Characters of what is said beside results.
_MAX_LINE = 2000


@dataclass(slots=True)
class _Common(Generic[H]):
    """What both faces share."""

    ticket: Ticket
    channel: Channel
    tensors: Mapping[str, Tensor]
    stored: BlockingArtifacts
    saved: BlockingCheckpoint
    places: Workplaces
    handle: H | None = None
    _warnings: int = 0

    @property
    def request_id(self) -> str:
        """See :attr:`lensd_api.Context.request_id`."""
        return self.ticket.request_id

    @property
    def cancelled(self) -> bool:
        """See :attr:`lensd_api.Context.cancelled`."""
        return self.ticket.cancelled or self.ticket.expired()

    @property
    def model(self) -> H:
        """See :attr:`lensd_api.Context.model`."""
        self.ticket.check()
        if self.handle is None:
            raise RequirementNotMet("this analysis uses a model: name one in the request")
        return self.handle

    def progress(self, done: float, total: float = 0.0, *, stage: str = "", unit: str = "") -> None:
        """See :meth:`lensd_api.Context.progress`."""
        self.ticket.check()
        what = Progress(_line(stage, "stage"), float(done), float(total), _line(unit, "unit"))
        self.channel.put_now(what)

    def lower_priority(self) -> None:
        """See :meth:`lensd_api.Context.lower_priority`."""
        self.ticket.priority = Priority.BATCH

    def warn(self, reason: str, message: str, *, item: str = "") -> None:
        """See :meth:`lensd_api.Context.warn`."""
        self.ticket.check()
        self._warnings += 1
        if self._warnings < MAX_WARNINGS:
            lines = _line(reason, "reason"), _line(message, "message"), _line(item, "item")
            self.channel.put_now(Warned(*lines))
        elif self._warnings == MAX_WARNINGS:
            self.channel.put_now(Warned("TOO_MANY_WARNINGS", "further warnings are left out"))


class AsyncContext(_Common[AsyncHandle]):
    """A :class:`lensd_api.Context`."""

    @property
    def artifacts(self) -> AsyncArtifacts:
        """See :attr:`lensd_api.Context.artifacts`."""
        return AsyncArtifacts(self.stored)

    @property
    def checkpoint(self) -> AsyncCheckpoint:
        """See :attr:`lensd_api.Context.checkpoint`."""
        return AsyncCheckpoint(self.saved)

    async def compute(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """See :meth:`lensd_api.Context.compute`."""
        return await AsyncWorkspace(self.ticket, self.places.computing).compute(fn, *args, **kwargs)

    def workspace(
        self, size_bytes: int, *, device: Literal["model", "cpu"] = "model"
    ) -> AbstractAsyncContextManager[AsyncWorkspace]:
        """See :meth:`lensd_api.Context.workspace`."""
        return self.places.open(self.ticket, size_bytes, device)


class BlockingAnalysisContext(_Common[BlockingHandle]):
    """A :class:`lensd_api.BlockingContext`."""

    @property
    def artifacts(self) -> BlockingArtifacts:
        """See :attr:`lensd_api.BlockingContext.artifacts`."""
        return self.stored

    @property
    def checkpoint(self) -> BlockingCheckpoint:
        """See :attr:`lensd_api.BlockingContext.checkpoint`."""
        return self.saved

    def compute(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """See :meth:`lensd_api.BlockingContext.compute`."""
        return BlockingWorkspace(self.ticket, self.places.computing.device).compute(fn, *args, **kwargs)

    def workspace(
        self, size_bytes: int, *, device: Literal["model", "cpu"] = "model"
    ) -> AbstractContextManager[BlockingWorkspace]:
        """See :meth:`lensd_api.BlockingContext.workspace`."""
        return self.places.open_blocking(self.ticket, size_bytes, device)


def _line(said: str, what: str) -> str:
    """``said``, cut where it is endless. Raises Unsound, into the author's code, unless it is text."""
    return text(said, f"the {what}")[:_MAX_LINE]
