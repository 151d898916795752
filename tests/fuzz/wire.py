"""Makes an attempt as raw bytes over gRPC and judges what came of it."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.rpc import code_pb2, error_details_pb2, status_pb2

from lensd_proto.v1 import analysis_pb2
from tests.fuzz.attempts import Attempt

#: Within which every call must have ended, whatever it was.
_END_S = 60.0
_CONNECTIONS = 4
#: What gRPC's own client says when it ends a call by itself: told to, or when it could not say all of a
#: stream before the call was over. The server has no such texts.
_LOCAL = ("locally cancelled", "Internal error from Core")
#: What no input may cause.
_NEVER = {"UNKNOWN", "INTERNAL", "DATA_LOSS"}


@dataclass(frozen=True, slots=True)
class End:
    """How a call ended: its code and reason; ``faults`` are broken promises."""

    code: str
    reason: str
    faults: tuple[str, ...]


class Wire:
    """Several connections to each listener."""

    def __init__(self, public: str, admin: str) -> None:
        self._channels = [
            [
                grpc.aio.insecure_channel(
                    target, [("grpc.max_receive_message_length", -1), ("lensd.fuzz.connection", number)]
                )
                for number in range(_CONNECTIONS)
            ]
            for target in (public, admin)
        ]

    async def make(self, attempt: Attempt) -> End:
        """Makes the call and waits for its end."""
        channel = self._channels[attempt.on_admin][attempt.index % _CONNECTIONS]
        answers: list[bytes] = []
        try:
            async with asyncio.timeout(_END_S):
                status = await _call(channel, attempt, answers)
        except TimeoutError:
            return End("NONE", "", (f"the call had not ended after {_END_S:g} s",))
        return _judge(attempt, status, answers)

    async def close(self) -> None:
        """Hangs up."""
        for channel in (channel for channels in self._channels for channel in channels):
            await channel.close()


async def _call(channel: grpc.aio.Channel, attempt: Attempt, answers: list[bytes]) -> status_pb2.Status:
    method = attempt.method
    kind = "stream" if method.request_streaming else "unary"
    kind += "_stream" if method.response_streaming else "_unary"
    over = asyncio.Event()
    sent: Any = _say(attempt, over) if method.request_streaming else attempt.payloads[0]
    call = getattr(channel, kind)(method.path)(sent, timeout=attempt.timeout_s, metadata=attempt.metadata)
    if attempt.leave_after == 0:
        await asyncio.sleep(0)
        call.cancel()
    try:
        if not method.response_streaming:
            answers.append(await call)
            return status_pb2.Status()
        async for answer in call:
            answers.append(answer)
            if len(answers) == attempt.leave_after:
                call.cancel()
        return status_pb2.Status(code=(await call.code()).value[0])
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        return status_pb2.Status(code=code_pb2.CANCELLED, message=_LOCAL[0])
    except grpc.aio.AioRpcError as error:
        return _status(error)
    finally:
        over.set()


async def _say(attempt: Attempt, over: asyncio.Event) -> AsyncIterator[bytes]:
    for payload in attempt.payloads:
        yield payload
    if not attempt.half_closes:
        await over.wait()


def _status(error: grpc.aio.AioRpcError) -> status_pb2.Status:
    trailing: Any = error.trailing_metadata() or ()
    for key, value in trailing:
        if key == "grpc-status-details-bin":
            return status_pb2.Status.FromString(value)
    return status_pb2.Status(code=error.code().value[0], message=error.details() or "")


def _judge(attempt: Attempt, status: status_pb2.Status, answers: list[bytes]) -> End:
    code = code_pb2.Code.Name(status.code)
    faults = []
    if not _own_doing(attempt, code, status.message):
        faults += _faults(status, has_details=attempt.method.ours)
    if attempt.method.name == "Analyze" and code == "OK":
        last = analysis_pb2.AnalyzeResponse.FromString(answers[-1]) if answers else None
        if last is None or not last.HasField("completed"):
            faults.append("the stream ended well and without `completed`")
    if attempt.method.name in ("Analyze", "AnalyzeMany"):
        faults += [fault for answer in answers for fault in _inner_faults(attempt, answer)]
    return End("LOCAL" if status.message in _LOCAL else code, _reason(status), tuple(faults))


def _own_doing(attempt: Attempt, code: str, message: str) -> bool:
    """Whether the caller's side ended the call."""
    if code == "CANCELLED" and attempt.leave_after is not None:
        return True
    return code == "DEADLINE_EXCEEDED" or message in _LOCAL


def _inner_faults(attempt: Attempt, answer: bytes) -> list[str]:
    """Of what failed within a stream: an analysis among many, or an item of one."""
    if attempt.method.name == "AnalyzeMany":
        event = analysis_pb2.AnalyzeManyResponse.FromString(answer).response
    else:
        event = analysis_pb2.AnalyzeResponse.FromString(answer)
    faults = []
    if event.HasField("failed"):
        faults += _faults(event.failed.status, has_details=True)
    if event.HasField("result") and event.result.HasField("error"):
        faults += _faults(event.result.error, has_details=True)
    return faults


def _faults(status: status_pb2.Status, *, has_details: bool) -> list[str]:
    code = code_pb2.Code.Name(status.code)
    if code in _NEVER:
        return [f"ended with {code} {_reason(status)}: {status.message}"]
    if code != "OK" and has_details and not _reason(status):
        return [f"{code} carries no ErrorInfo: {status.message}"]
    return []


def _reason(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    return next((info.reason for detail in status.details if detail.Unpack(info)), "")
