"""Many analyses over one stream: each fails, is cancelled and completes by itself."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from lensd_api.errors import Cancelled, FieldViolation, InvalidRequest, LensdError, QueueFull
from lensd_proto.v1 import analysis_pb2
from lensd_server.engine.events import AnalysisRequest
from lensd_server.engine.faults import internal_failure
from lensd_server.engine.turnover import Turnover
from lensd_server.rpc import wire
from lensd_server.rpc.dispatch import Call
from lensd_server.rpc.gate import Gate
from lensd_server.rpc.status import clip, to_status
from lensd_server.settings import LimitSettings

Respond = Callable[[AnalysisRequest], AsyncGenerator[analysis_pb2.AnalyzeResponse]]

#: Messages of all analyses of a stream that may wait to be sent.
_OUTBOX = 8


class _End:
    """The stream is over; ``error`` is why, unless it ended well."""

    def __init__(self, error: LensdError | None = None) -> None:
        self.error = error


class ManyAnalyses:
    """One AnalyzeMany stream. Runs once.

    After the client's half-close running analyses finish. The failure of one analysis ends it
    with ``failed`` and leaves the others alone; a message that is not one ends the stream.

    What a client that does not read makes it hold is bounded: analyses whose last message waits to be
    sent keep that message only, and with too many of them further starts wait.
    """

    def __init__(self, respond: Respond, limits: LimitSettings, gate: Gate, call: Call) -> None:
        self._respond = respond
        self._limits = limits
        self._gate = gate
        self._call = call
        #: By request_id; gone before the last message of an analysis is queued, since the
        #: client may use the identifier again once it has that message.
        self._running: dict[str, asyncio.Task[None]] = {}
        self._turnover = Turnover()
        #: Gone when the last message has been queued.
        self._tasks: set[asyncio.Task[None]] = set()
        self._most_tasks = 2 * limits.max_analyses_per_stream
        #: The start that waits until there is room, with its request_id.
        self._held: asyncio.Task[None] | None = None
        self._held_id = ""
        self._outbox: asyncio.Queue[analysis_pb2.AnalyzeResponse | _End] = asyncio.Queue(_OUTBOX)
        self._closing = False
        self._half_closed = False

    async def run(
        self, messages: AsyncIterator[analysis_pb2.AnalyzeManyRequest]
    ) -> AsyncGenerator[analysis_pb2.AnalyzeResponse]:
        """The responses, in the order in which they come up. Raises LensdError."""
        with self._gate.answering():
            async with aclosing(self._run(messages)) as responses:
                async for response in responses:
                    yield response

    async def _run(
        self, messages: AsyncIterator[analysis_pb2.AnalyzeManyRequest]
    ) -> AsyncGenerator[analysis_pb2.AnalyzeResponse]:
        reader = asyncio.create_task(self._read(messages))
        idle = asyncio.create_task(self._leave_when_drained())
        try:
            while True:
                item = await self._outbox.get()
                if isinstance(item, _End):
                    if item.error is not None:
                        raise item.error
                    return
                yield item
        finally:
            self._closing = True
            tasks = [reader, idle, *self._tasks]
            if self._held is not None:
                tasks.append(self._held)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, messages: AsyncIterator[analysis_pb2.AnalyzeManyRequest]) -> None:
        try:
            async for message in messages:
                await self._act(message)
            self._half_closed = True
            await self._finish()
            await self._outbox.put(_End())
        except LensdError as error:
            await self._outbox.put(_End(error))
        except Exception as error:  # ours: the stream must not be left waiting
            await self._outbox.put(_End(internal_failure(error, "reading requests")))

    async def _leave_when_drained(self) -> None:
        """An idle stream would hold up the shutdown for all of its grace."""
        await self._gate.closed()
        await self._finish()
        if self._half_closed:
            return
        try:
            self._gate.check()
        except LensdError as error:
            await self._outbox.put(_End(error))

    async def _finish(self) -> None:
        await self._none_held()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _act(self, message: analysis_pb2.AnalyzeManyRequest) -> None:
        match message.WhichOneof("action"):
            case "start":
                await self._none_held()
                if self._is_crowded():
                    self._held_id = message.start.request_id
                    self._held = asyncio.create_task(self._start_later(message.start))
                    await asyncio.sleep(0)  # a task that is cancelled before its first step says nothing
                else:
                    await self._start(message.start)
            case "cancel":
                self._cancel(message.cancel.request_id)
            case _:
                fault = FieldViolation("action", "must hold `start` or `cancel`")
                raise InvalidRequest("a message without an action", violations=[fault])

    def _cancel(self, request_id: str) -> None:
        task = self._running.get(request_id)
        if task is None and request_id == self._held_id:
            task = self._held
        if task is not None:
            task.cancel()

    def _is_crowded(self) -> bool:
        """Whether a start, or its refusal, would wait for the client to read."""
        return len(self._tasks) >= self._most_tasks or self._outbox.full()

    async def _none_held(self) -> None:
        """One start is held at a time; until it has begun, cancels are read and nothing else."""
        if self._held is not None:
            await self._held

    async def _start_later(self, message: analysis_pb2.AnalyzeRequest) -> None:
        try:
            while len(self._tasks) >= self._most_tasks:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            await self._start(message)
        except asyncio.CancelledError:
            if self._closing:
                raise
            await self._outbox.put(_failed(clip(message.request_id, 128), 0, _cancelled()))

    async def _start(self, message: analysis_pb2.AnalyzeRequest) -> None:
        try:
            request = await self._admit(message)
        except LensdError as error:
            await self._outbox.put(_failed(clip(message.request_id, 128), 0, error))
            return
        task = asyncio.create_task(self._run_one(request))
        self._running[request.request_id] = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _admit(self, message: analysis_pb2.AnalyzeRequest) -> AnalysisRequest:
        if not message.request_id:
            fault = FieldViolation("request_id", "must be given within AnalyzeMany")
            raise InvalidRequest(f"{fault.field}: {fault.description}", violations=[fault])
        if message.request_id in self._running:
            fault = FieldViolation("request_id", "is in use by a running analysis of this stream")
            raise InvalidRequest(
                f"{fault.field}: {fault.description}; that one goes on",
                violations=[fault],
                reason="DUPLICATE_REQUEST_ID",
            )
        self._call.check_again()
        limit = self._limits.max_analyses_per_stream
        if len(self._running) >= limit:
            raise QueueFull(
                f"{limit} analyses run on this stream already; wait until one ends",
                reason="STREAM_FULL",
                metadata={"max_analyses_per_stream": str(limit)},
                retry_after_s=self._turnover.retry_after_s(limit),
            )
        return await wire.read_large(
            message,
            limits=self._limits,
            peer=self._call.peer,
            identity=self._call.identity,
            call_deadline=self._call.deadline,
        )

    async def _run_one(self, request: AnalysisRequest) -> None:
        request_id, began = request.request_id, time.monotonic()
        last = await self._converse(request)
        del request  # the client may read nothing for long
        self._running.pop(request_id, None)
        self._turnover.left(time.monotonic() - began)
        await self._outbox.put(last)

    async def _converse(self, request: AnalysisRequest) -> analysis_pb2.AnalyzeResponse:
        """Queues the messages of one analysis except for the last one, which it answers."""
        sent, last = 0, None
        try:
            async with aclosing(self._respond(request)) as responses:
                async for response in responses:
                    if response.HasField("completed"):
                        last = response
                    else:
                        await self._outbox.put(response)
                        sent += 1
            if last is None:
                raise RuntimeError("an analysis ended without its last message")
            return last
        except asyncio.CancelledError:
            if self._closing:
                raise
            failure: LensdError = _cancelled()
        except LensdError as error:
            failure = error
        except Exception as error:  # ours: it must end in one event like any other
            failure = internal_failure(error, "the analysis", request_id=request.request_id)
        # Numbered by what was queued: a message that the cancel overtook was never sent.
        return _failed(request.request_id, sent, failure)


def _cancelled() -> Cancelled:
    return Cancelled("the caller cancelled the analysis")


def _failed(request_id: str, sequence: int, error: LensdError) -> analysis_pb2.AnalyzeResponse:
    return analysis_pb2.AnalyzeResponse(
        request_id=request_id,
        sequence=sequence,
        failed=analysis_pb2.Failed(status=to_status(error)),
    )
