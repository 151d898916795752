"""Many analyses over one stream: each fails, is cancelled and completes by itself."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

from lensd_api.errors import Cancelled, FieldViolation, InvalidRequest, LensdError, QueueFull
from lensd_proto.v1 import analysis_pb2
from lensd_server.engine.events import AnalysisRequest
from lensd_server.engine.faults import internal_failure
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
    """

    def __init__(self, respond: Respond, limits: LimitSettings, gate: Gate, call: Call) -> None:
        self._respond = respond
        self._limits = limits
        self._gate = gate
        self._call = call
        #: By request_id; gone before the last message of an analysis is queued, since the
        #: client may use the identifier again once it has that message.
        self._running: dict[str, asyncio.Task[None]] = {}
        #: Gone when the last message has been queued.
        self._tasks: set[asyncio.Task[None]] = set()
        self._outbox: asyncio.Queue[analysis_pb2.AnalyzeResponse | _End] = asyncio.Queue(_OUTBOX)
        self._closing = False
        self._half_closed = False

    async def run(
        self, messages: AsyncIterator[analysis_pb2.AnalyzeManyRequest]
    ) -> AsyncGenerator[analysis_pb2.AnalyzeResponse]:
        """The responses, in the order in which they come up. Raises LensdError."""
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
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _act(self, message: analysis_pb2.AnalyzeManyRequest) -> None:
        match message.WhichOneof("action"):
            case "start":
                await self._start(message.start)
            case "cancel":
                task = self._running.get(message.cancel.request_id)
                if task is not None:
                    task.cancel()
            case _:
                fault = FieldViolation("action", "must hold `start` or `cancel`")
                raise InvalidRequest("a message without an action", violations=[fault])

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
                retry_after_s=1.0,
            )
        return await wire.read_large(
            message,
            limits=self._limits,
            peer=self._call.peer,
            identity=self._call.identity,
            call_deadline=self._call.deadline,
        )

    async def _run_one(self, request: AnalysisRequest) -> None:
        sent = 0
        try:
            async with aclosing(self._respond(request)) as responses:
                async for response in responses:
                    if response.HasField("completed"):
                        self._running.pop(request.request_id, None)
                    await self._outbox.put(response)
                    sent += 1
            return
        except asyncio.CancelledError:
            if self._closing:
                raise
            failure: LensdError = Cancelled("the caller cancelled the analysis")
        except LensdError as error:
            failure = error
        except Exception as error:  # ours: it must end in one event like any other
            failure = internal_failure(error, "the analysis", request_id=request.request_id)
        # Numbered by what was queued: a message that the cancel overtook was never sent.
        self._running.pop(request.request_id, None)
        await self._outbox.put(_failed(request.request_id, sent, failure))


def _failed(request_id: str, sequence: int, error: LensdError) -> analysis_pb2.AnalyzeResponse:
    return analysis_pb2.AnalyzeResponse(
        request_id=request_id,
        sequence=sequence,
        failed=analysis_pb2.Failed(status=to_status(error)),
    )
