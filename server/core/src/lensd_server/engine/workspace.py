"""Where one analysis may compute for itself: beside its model on a device, or on the CPU.

Invariant: what is set aside on a device is given back when nothing of the analysis runs there any more.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.compute import ComputeThread
from lensd_server.engine.device import Device

T = TypeVar("T")

#: Holds so many bytes of a device's budget. Raises Exhausted.
SetAside = Callable[[str, int], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class AsyncWorkspace:
    """A :class:`lensd_api.Workspace`."""

    ticket: Ticket
    thread: ComputeThread

    @property
    def device(self) -> str:
        """See :attr:`lensd_api.Workspace.device`."""
        return self.thread.device.name

    async def compute(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """See :meth:`lensd_api.Workspace.compute`."""
        self.ticket.check()
        return await asyncio.wrap_future(self.thread.submit(self.ticket, fn, *args, **kwargs))


@dataclass(frozen=True, slots=True)
class BlockingWorkspace:
    """A :class:`lensd_api.BlockingWorkspace`: the same on the analyzer's own thread."""

    ticket: Ticket
    place: Device

    @property
    def device(self) -> str:
        """See :attr:`lensd_api.Workspace.device`."""
        return self.place.name

    def compute(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
        """See :meth:`lensd_api.BlockingWorkspace.compute`."""
        self.ticket.check()
        with self.place.turn.of(self.ticket), self.ticket.on_device(), self.place.completing():
            self.ticket.check()
            return fn(*args, **kwargs)


@dataclass(frozen=True, slots=True)
class Workplaces:
    """The CPU, and the device of the analysis's model if it has one."""

    computing: ComputeThread
    model_device: Device | None
    set_aside: SetAside

    @asynccontextmanager
    async def open(
        self, ticket: Ticket, size_bytes: int, device: Literal["model", "cpu"]
    ) -> AsyncGenerator[AsyncWorkspace, None]:
        """See :meth:`lensd_api.Context.workspace`."""
        place = self._place(device)
        if place is self.computing.device:
            yield AsyncWorkspace(ticket, self.computing)
            return
        held = ExitStack()
        held.enter_context(self.set_aside(place.name, size_bytes))
        held.callback(place.release)
        thread = ComputeThread(place, at_end=held.close)
        try:
            yield AsyncWorkspace(ticket, thread)
        finally:
            thread.close()

    @contextmanager
    def open_blocking(
        self, ticket: Ticket, size_bytes: int, device: Literal["model", "cpu"]
    ) -> Generator[BlockingWorkspace, None, None]:
        """See :meth:`lensd_api.BlockingContext.workspace`."""
        place = self._place(device)
        if place is self.computing.device:
            yield BlockingWorkspace(ticket, place)
            return
        with self.set_aside(place.name, size_bytes):
            try:
                yield BlockingWorkspace(ticket, place)
            finally:
                place.release()

    def _place(self, device: Literal["model", "cpu"]) -> Device:
        if device == "cpu" or self.model_device is None or self.model_device.is_cpu:
            return self.computing.device
        return self.model_device
