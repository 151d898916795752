"""What callers can do wrong."""

import random
import socket
import time
from contextlib import ExitStack

import grpc
import pytest

from lensd_client import Client
from lensd_client._status import error_from_call
from lensd_client.errors import LensdError
from lensd_proto.v1 import analysis_pb2, analysis_pb2_grpc
from tests.faults.matrix import Fault
from tests.faults.site import MAX_ANALYSES, Site, until

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
#: A client that reads nothing may make the server run ahead by what gRPC and the queues hold.
_STALLED_BYTES = 64 * 1024 * 1024


def _nothing_runs(site: Site, analyzer: str) -> None:
    with site.client() as client:
        until(lambda: all(a.analyzer != analyzer for a in client.analyses()), f"no {analyzer} is left")


def _waiting(client: Client, count: int) -> list[object]:
    """That many analyses, every one of which has begun."""
    runs = [client.analyze("waits") for _ in range(count)]
    for run in runs:
        next(event for event in run if getattr(event, "name", "") == "waiting")
    return list(runs)


def _vanishes(site: Site) -> str:
    with site.client() as client:
        _waiting(client, 10)
    _nothing_runs(site, "waits")
    return "(gone) its analyses ended and gave back what they held"


def _stalls(site: Site) -> str:
    process = site.process
    before = process.memory_info().rss
    with grpc.insecure_channel(site.daemon.grpc) as channel:
        request = analysis_pb2.AnalyzeRequest(request_id="stalls", analyzer="much")
        request.params.update({"pieces": 500})
        call = analysis_pb2_grpc.AnalysisServiceStub(channel).Analyze(request)
        next(call)
        pause = time.monotonic() + 3.0
        grown = 0
        while time.monotonic() < pause:
            grown = max(grown, process.memory_info().rss - before)
            time.sleep(0.05)
        call.cancel()
    assert grown < _STALLED_BYTES, f"2 GB of results, and the server kept {grown / 1e6:.0f} MB for it"
    _nothing_runs(site, "much")
    return f"(read nothing of 2 GB) the server kept less than {_STALLED_BYTES >> 20} MiB for it"


def _floods(site: Site) -> str:
    """Four times what may run at once, from a client that does not wait when it is told to."""
    refusals: list[LensdError] = []
    with grpc.insecure_channel(site.daemon.grpc) as channel:
        stub = analysis_pb2_grpc.AnalysisServiceStub(channel)
        requests = [
            analysis_pb2.AnalyzeRequest(request_id=f"flood-{number}", analyzer="waits")
            for number in range(4 * MAX_ANALYSES)
        ]
        calls = [stub.Analyze(request) for request in requests]
        for call in calls:
            try:
                next(call)
            except grpc.RpcError as error:
                refusals.append(error_from_call(error, site.daemon.grpc))
        for call in calls:
            call.cancel()
    assert len(refusals) >= 3 * MAX_ANALYSES
    assert {refusal.code for refusal in refusals} == {"RESOURCE_EXHAUSTED"}
    reasons = {refusal.reason for refusal in refusals}
    assert reasons <= {"QUEUE_FULL", "CALLER_SHARE"}
    assert all(refusal.retry_after_s for refusal in refusals)
    _nothing_runs(site, "waits")
    told = " or ".join(f"`{reason}`" for reason in sorted(reasons))
    return f"at most {MAX_ANALYSES} run, the others RESOURCE_EXHAUSTED {told} with a time to try again"


def _garbage(site: Site) -> str:
    """Noise, other protocols, half a protocol, and connections that say nothing."""
    noise = random.Random(7)
    speeches = [
        noise.randbytes(4096),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + noise.randbytes(256),
        _PREFACE + noise.randbytes(4096),
        _PREFACE + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00" + b"\xff" * 1024,
        b"",
    ]
    with ExitStack() as stack:
        for address in (site.daemon.grpc, site.daemon.admin, site.daemon.metrics):
            host, _, port = address.rpartition(":")
            for speech in speeches * 8:
                spoken = stack.enter_context(socket.create_connection((host, int(port)), timeout=10))
                try:
                    spoken.sendall(speech)
                except OSError:  # hung up on already, which is an answer
                    continue
        assert site.daemon.scrape("/livez") == "ok\n"
        assert site.daemon.scrape("/readyz") == "ok\n"
        _malformed(site)
    return "connections are closed or ignored; malformed messages INVALID_ARGUMENT"


def _malformed(site: Site) -> None:
    with grpc.insecure_channel(site.daemon.grpc) as channel:
        method = channel.unary_stream("/lensd.v1.AnalysisService/Analyze", request_serializer=bytes)
        for message in (b"\xff" * 64, b"\x0a\x05abc", random.Random(8).randbytes(512)):
            with pytest.raises(grpc.RpcError) as refused:
                next(method(message))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


CLIENT_FAULTS = (
    Fault("clients vanish in the middle of their streams", _vanishes),
    Fault("a client stops reading", _stalls),
    Fault(
        "a client floods",
        _floods,
        frozenset({"RESOURCE_EXHAUSTED QUEUE_FULL", "RESOURCE_EXHAUSTED CALLER_SHARE"}),
    ),
    Fault("garbage, other protocols and silence on every port", _garbage),
)
