"""A running analysis: a stream of events that becomes a set of results. Sync and async twins."""

import asyncio
import inspect
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio

from lensd_client._assembly import Assembler
from lensd_client._retry import Attempts
from lensd_client.errors import Cancelled, LensdError
from lensd_client.events import Accepted, Completed, Event, Progress, Warned
from lensd_client.findings import Findings, Item
from lensd_client.results import Value

#: The type stubs of grpc do not know it.
_EOF: Any = vars(grpc.aio)["EOF"]


class _RunBase:
    """What both kinds of run know: the events so far and how the stream ended."""

    def __init__(
        self, begin: Callable[[], Any], attempts: Attempts, explain: Callable[[Exception], LensdError]
    ) -> None:
        """``begin`` starts the call, and once more for each attempt after it was refused."""
        self._begin, self._attempts = begin, attempts
        self._call = begin()
        self._explain = explain
        self._assembler = Assembler()
        self._findings = Findings()
        self._waiting: deque[Event] = deque()
        self._error: LensdError | None = None
        self._is_cancelled = False

    @property
    def request_id(self) -> str:
        """Identifies the analysis on the server; empty until the first event."""
        return self._assembler.request_id

    @property
    def is_finished(self) -> bool:
        """Whether ``completed`` has arrived; everything sent is here then."""
        return self._assembler.is_finished

    @property
    def accepted(self) -> Accepted | None:
        """What the server said when it took the analysis on; None before that."""
        return self._findings.accepted

    @property
    def progress(self) -> Progress | None:
        """The newest progress seen."""
        return self._findings.progress

    @property
    def completed(self) -> Completed | None:
        """Usage and model revision; None until the analysis is done."""
        return self._findings.completed

    @property
    def warnings(self) -> tuple[Warned, ...]:
        """The warnings seen so far."""
        return self._findings.warnings

    def cancel(self) -> None:
        """Stops the analysis on the server. Reading on raises Cancelled, unless it was done."""
        self._is_cancelled = True
        self._call.cancel()

    def __repr__(self) -> str:
        state = "failed" if self._error else "finished" if self.is_finished else "running"
        names = ", ".join(dict.fromkeys(value.name for value in self._findings.values()))
        return (
            f"<{type(self).__name__} {self.request_id or '(new)'}: {state}; results: {names or 'none yet'}>"
        )

    def _keep(self, message: Any) -> None:
        self._attempts.commit()
        for event in self._assembler.feed(message):
            self._findings.take(event)
            self._waiting.append(event)

    def _fail(self, error: LensdError) -> LensdError:
        """Remembers why the stream ended; whatever is still running for us stops."""
        self._error = error
        self._waiting.clear()
        self._call.cancel()
        return error

    def _start_again(self) -> None:
        self._call = self._begin()
        if self._is_cancelled:  # meanwhile, on another thread
            self._call.cancel()


class Run(_RunBase):
    """One running analysis. Iterate over its events, or ask for results, which waits for the end.

    Errors of the analysis are raised by whatever reads the stream, and again by later reads.
    As a context manager it cancels what is still running when the block is left.
    """

    def __init__(
        self, begin: Callable[[], Any], attempts: Attempts, explain: Callable[[Exception], LensdError]
    ) -> None:
        super().__init__(begin, attempts, explain)
        self._stop = threading.Event()

    def cancel(self) -> None:
        """Stops the analysis on the server. Reading on raises Cancelled, unless it was done."""
        super().cancel()
        self._stop.set()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while not self._waiting:
            if self._error is not None:
                raise self._error
            try:
                self._keep(next(self._call))
            except StopIteration:
                self._check_end()
                raise
            except grpc.RpcError as error:
                pause_s = self._attempts.pause_s(error)
                if pause_s is None:
                    raise self._fail(self._explain(error)) from None
                if self._stop.wait(pause_s):
                    raise self._fail(Cancelled("cancelled by this client")) from None
                self._start_again()
            except LensdError as error:
                raise self._fail(error) from None
        return self._waiting.popleft()

    def finish(self) -> Self:
        """Waits for the end and returns itself. Events not read before are skipped."""
        for _ in self:
            pass
        return self

    def results(self) -> list[Value]:
        """Waits for the end; every result in order of arrival, failed items left out."""
        self.finish()
        return self._findings.values()

    def items(self) -> Iterator[Item]:
        """Waits for the end; every item with its results, errors carried inside."""
        self.finish()
        yield from self._findings.by_item()

    def __getitem__(self, name: str | tuple[str, str]) -> Any:
        """Waits for the end; the result called ``name``, or of (name, item).

        Which kind of result it is, the analyzer declares. Raises the item's error if it failed,
        KeyError when there is no such result.
        """
        self.finish()
        return self._findings.pick(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.is_finished:
            self.cancel()

    def _check_end(self) -> None:
        try:
            self._assembler.finish()
        except LensdError as error:
            raise self._fail(error) from None


class AsyncRun(_RunBase):
    """The twin of :class:`Run`. ``await run`` waits for the end; results can be read then.

    It is a coroutine as well, so that ``asyncio.create_task(lens.analyze(...))`` does what it says.
    """

    def __init__(
        self, begin: Callable[[], Any], attempts: Attempts, explain: Callable[[Exception], LensdError]
    ) -> None:
        super().__init__(begin, attempts, explain)
        self._stop = asyncio.Event()
        self._steps: Coroutine[Any, Any, Self] | None = None

    def cancel(self) -> None:
        """Stops the analysis on the server. Reading on raises Cancelled, unless it was done."""
        super().cancel()
        self._stop.set()

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        while not self._waiting:
            if self._error is not None:
                raise self._error
            try:
                message: Any = await self._call.read()
                if message is _EOF:
                    self._assembler.finish()
                    raise StopAsyncIteration
                self._keep(message)
            except asyncio.CancelledError:
                # grpc.aio raises this for run.cancel() too, as if this task were cancelled.
                task = asyncio.current_task()
                if not self._is_cancelled or (task is not None and task.cancelling()):
                    raise
                raise self._fail(Cancelled("cancelled by this client")) from None
            except grpc.RpcError as error:
                pause_s = self._attempts.pause_s(error)
                if pause_s is None:
                    raise self._fail(self._explain(error)) from None
                await self._wait(pause_s)
                self._start_again()
            except LensdError as error:
                raise self._fail(error) from None
        return self._waiting.popleft()

    async def _wait(self, pause_s: float) -> None:
        try:
            async with asyncio.timeout(pause_s):
                await self._stop.wait()
        except TimeoutError:
            return
        raise self._fail(Cancelled("cancelled by this client"))

    async def finish(self) -> Self:
        """Waits for the end and returns itself. Events not read before are skipped."""
        async for _ in self:
            pass
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self.finish().__await__()

    def send(self, value: Any, /) -> Any:
        """A step of :meth:`finish`, for whoever drives coroutines."""
        return self._coroutine().send(value)

    def throw(self, *error: Any) -> Any:
        """Raises ``error`` inside :meth:`finish`, for whoever drives coroutines."""
        return self._coroutine().throw(*error)

    def close(self) -> None:
        """Ends the coroutine, not the analysis: see :meth:`cancel`."""
        if self._steps is not None:
            self._steps.close()

    def _coroutine(self) -> "Coroutine[Any, Any, Self]":
        if self._steps is None or inspect.getcoroutinestate(self._steps) == inspect.CORO_CLOSED:
            self._steps = self.finish()
        return self._steps

    async def results(self) -> list[Value]:
        """Waits for the end; every result in order of arrival, failed items left out."""
        await self.finish()
        return self._findings.values()

    async def items(self) -> AsyncIterator[Item]:
        """Waits for the end; every item with its results, errors carried inside."""
        await self.finish()
        for item in self._findings.by_item():
            yield item

    def __getitem__(self, name: str | tuple[str, str]) -> Any:
        """The result called ``name``, or of (name, item), of a run that was awaited.

        Which kind of result it is, the analyzer declares. Raises the item's error if it failed,
        KeyError when there is no such result.
        """
        if self._error is not None:
            raise self._error
        if not self.is_finished:
            raise RuntimeError("the run is not finished: `await run` first")
        return self._findings.pick(name)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.is_finished:
            self.cancel()
