"""How requests reach a daemon: each as a call of its own, or many on one stream. Nothing is retried.

Invariant: :meth:`Wire.run` answers exactly one end for each request, whatever happens.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.rpc import code_pb2, error_details_pb2, status_pb2

from lensd_proto.v1 import analysis_pb2, analysis_pb2_grpc
from tests.bench.load.plan import Shot
from tests.bench.load.stream import StreamCheck
from tests.bench.load.tally import COMPLETED, End

_EOF: Any = vars(grpc.aio)["EOF"]
_OPTIONS = (("grpc.enable_retries", 0), ("grpc.enable_http_proxy", 0))


class Wire:
    """Connections to one daemon. ``token`` and ``ca`` (a PEM file) for one that asks for them."""

    def __init__(
        self, target: str, connections: int = 4, *, token: str | None = None, ca: Path | None = None
    ) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self._channels = [_channel(target, number, ca) for number in range(connections)]
        stubs = [analysis_pb2_grpc.AnalysisServiceStub(channel) for channel in self._channels]
        self._stubs: list[Any] = stubs
        self._streams = [_Many(stub, self._metadata) for stub in self._stubs]
        self._turn = 0

    async def run(self, shot: Shot, due: float | None = None) -> End:
        """Sends a request and reads everything that comes. ``due`` is when it should have been sent."""
        self._turn += 1
        place = self._turn % len(self._stubs)
        analysis = _Running(shot, time.perf_counter() if due is None else due)
        if shot.many:
            return await self._streams[place].run(analysis)
        return await self._call(self._stubs[place], analysis)

    async def close(self) -> None:
        """Ends the streams, then the connections."""
        for stream in self._streams:
            await stream.close()
        for channel in self._channels:
            await channel.close()

    async def _call(self, stub: Any, analysis: "_Running") -> End:
        shot = analysis.shot
        call = stub.Analyze(shot.message(), timeout=shot.timeout_s, metadata=self._metadata)
        alarm = None
        if shot.cancel_after_s is not None:
            alarm = asyncio.get_running_loop().call_later(shot.cancel_after_s, call.cancel)
        try:
            while (event := await call.read()) is not _EOF:
                analysis.take(event)
            return analysis.end(status_pb2.Status(code=code_pb2.OK))
        except asyncio.CancelledError:
            # grpc.aio raises it for our own cancel; one of this task's goes on.
            task = asyncio.current_task()
            if not call.cancelled() or (task is not None and task.cancelling()):
                raise
            return analysis.end(status_pb2.Status(code=code_pb2.CANCELLED))
        except grpc.RpcError as error:
            return analysis.end(_status(error))
        finally:
            if alarm is not None:
                alarm.cancel()


@dataclass(slots=True)
class _Running:
    """A request that has been sent."""

    shot: Shot
    due: float
    first_result_s: float | None = None
    check: StreamCheck = field(init=False)

    def __post_init__(self) -> None:
        self.check = StreamCheck(self.shot.request_id)

    def take(self, event: analysis_pb2.AnalyzeResponse) -> None:
        self.check.feed(event)
        if self.first_result_s is None and event.WhichOneof("event") == "result":
            self.first_result_s = time.perf_counter() - self.due

    def end(self, status: status_pb2.Status) -> End:
        """``status`` OK means that the stream ended well, as it does after `completed` only."""
        if self.check.completed and status.code in self._own_doing():
            status = _OK  # given up between the last event and the status, which changes nothing
        ok = status.code == code_pb2.OK
        self.check.close(ok=ok)
        code = COMPLETED if ok and self.check.completed else code_pb2.Code.Name(status.code)
        reason, retry = _details(status)
        return End(
            request_id=self.shot.request_id,
            kind=self.shot.ask.kind,
            code="TRUNCATED" if code == "OK" else code,
            reason=reason,
            retry_after_s=retry,
            accepted=self.check.accepted,
            seconds=time.perf_counter() - self.due,
            first_result_s=self.first_result_s,
            faults=tuple(self.check.faults),
        )

    def _own_doing(self) -> set[int]:
        """Statuses that this client causes by itself."""
        own = {code_pb2.CANCELLED: self.shot.cancel_after_s, code_pb2.DEADLINE_EXCEEDED: self.shot.timeout_s}
        return {code for code, after in own.items() if after is not None}


class _Many:
    """One ``AnalyzeMany`` stream that any number of requests share; opened when first used."""

    def __init__(self, stub: Any, metadata: Any) -> None:
        self._stub, self._metadata = stub, metadata
        self._reader: asyncio.Task[None] | None = None
        self._feed: asyncio.Queue[analysis_pb2.AnalyzeManyRequest | None] = asyncio.Queue()
        self._running: dict[str, tuple[_Running, asyncio.Future[End]]] = {}

    async def run(self, analysis: _Running) -> End:
        loop, shot = asyncio.get_running_loop(), analysis.shot
        if self._reader is None or self._reader.done():
            self._feed = asyncio.Queue()
            self._reader = asyncio.create_task(self._read(self._feed))
        ended: asyncio.Future[End] = loop.create_future()
        self._running[shot.request_id] = (analysis, ended)
        self._feed.put_nowait(analysis_pb2.AnalyzeManyRequest(start=shot.message()))
        alarm = None
        if shot.cancel_after_s is not None:
            cancel = analysis_pb2.AnalyzeManyRequest(cancel=analysis_pb2.Cancel(request_id=shot.request_id))
            alarm = loop.call_later(shot.cancel_after_s, self._feed.put_nowait, cancel)
        try:
            return await ended
        finally:
            if alarm is not None:
                alarm.cancel()

    async def close(self) -> None:
        if self._reader is not None:
            self._feed.put_nowait(None)
            await self._reader

    async def _read(self, feed: "asyncio.Queue[analysis_pb2.AnalyzeManyRequest | None]") -> None:
        status = status_pb2.Status(code=code_pb2.DATA_LOSS, message="the stream ended before its analyses")
        try:
            call = self._stub.AnalyzeMany(_until_none(feed), metadata=self._metadata)
            async for message in call:
                self._take(message.response)
        except grpc.RpcError as error:
            status = _status(error)
        for analysis, ended in list(self._running.values()):
            ended.set_result(analysis.end(status))
        self._running.clear()

    def _take(self, event: analysis_pb2.AnalyzeResponse) -> None:
        found = self._running.get(event.request_id)
        if found is None:
            for analysis, _ in self._running.values():  # whoever is left carries the blame
                analysis.check.faults.append(f"an event of {event.request_id!r}, which does not run")
            return
        analysis, ended = found
        analysis.take(event)
        if analysis.check.ended:
            del self._running[event.request_id]
            ended.set_result(analysis.end(event.failed.status if analysis.check.failed else _OK))


_OK = status_pb2.Status(code=code_pb2.OK)


async def _until_none(feed: "asyncio.Queue[Any]") -> AsyncIterator[Any]:
    while (message := await feed.get()) is not None:
        yield message


def _channel(target: str, number: int, ca: Path | None) -> grpc.aio.Channel:
    # Channels of equal options share one connection; the number makes each its own.
    options = [*_OPTIONS, ("lensd.bench.connection", number)]
    if ca is None:
        return grpc.aio.insecure_channel(target, options)
    return grpc.aio.secure_channel(target, grpc.ssl_channel_credentials(ca.read_bytes()), options)


def _status(error: grpc.RpcError) -> status_pb2.Status:
    """The rich status of a failed call, or the plain one where there is none."""
    call: Any = error
    plain = status_pb2.Status(code=call.code().value[0], message=call.details() or "")
    trailing: Iterable[tuple[str, Any]] = call.trailing_metadata() or ()
    rich = next((value for key, value in trailing if key == "grpc-status-details-bin"), None)
    if rich is None:
        return plain
    found = status_pb2.Status()
    found.ParseFromString(rich)
    return found


def _details(status: status_pb2.Status) -> tuple[str, float | None]:
    """Reason and seconds to wait before the next try, as the details say."""
    reason, retry = "", None
    for detail in status.details:
        info, wait = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason = info.reason
        elif detail.Unpack(wait):
            retry = wait.retry_delay.ToTimedelta().total_seconds()
    return reason, retry
