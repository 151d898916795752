"""What callers get wrong, each with its status, its violations and what to do about it."""

from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from lensd_proto.v1 import analysis_pb2, models_pb2, results_pb2
from lensd_server.rpc.wire import TRANSPORT_BYTES

Request = analysis_pb2.AnalyzeRequest
ANALYZE = "/lensd.v1.AnalysisService/Analyze"
Refusal = Callable[[Any], Any]


def raw(channel: grpc.aio.Channel, data: bytes, method: str = ANALYZE) -> Any:
    return channel.unary_stream(method)(data)


async def still_serves(served: Any) -> None:
    served.executor.yields("fine")
    events = [event async for event in served.analysis.Analyze(Request(analyzer="fine"))]
    assert events[-1].HasField("completed")


@pytest.mark.parametrize("data", [b"\xff\xff\xff\xff", b"\x0a\x7fshort", b"\x08"])
async def test_malformed_bytes(served: Any, refusal: Refusal, data: bytes) -> None:
    said = await refusal(raw(served.public, data))
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")
    assert "lensd.v1.AnalyzeRequest" in said.message
    await still_serves(served)


async def test_malformed_bytes_to_a_unary_method(served: Any, refusal: Refusal) -> None:
    said = await refusal(served.public.unary_unary("/lensd.v1.ModelService/GetModel")(b"\xff\xff"))
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("unary_unary", "/grpc.health.v1.Health/Check"),
        ("unary_stream", "/grpc.health.v1.Health/Watch"),
        ("stream_stream", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"),
    ],
)
async def test_malformed_bytes_to_a_service_that_is_not_ours(
    served: Any, refusal: Refusal, kind: str, method: str
) -> None:
    sent = [b"\xff\xff"] if kind == "stream_stream" else b"\xff\xff"
    said = await refusal(getattr(served.public, kind)(method)(sent))
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED_MESSAGE")


async def test_a_method_that_grpc_leaves_out_is_nobodys_fault(
    served: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await served.public.unary_unary("/grpc.health.v1.Health/List")(b"")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert not [record for record in caplog.records if record.name.startswith("grpc")]


async def test_a_string_that_is_not_utf8(served: Any, refusal: Refusal) -> None:
    data = Request(analyzer="abc").SerializeToString().replace(b"abc", b"\xff\xfe\xfd")
    said = await refusal(raw(served.public, data))
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_UTF8")
    assert "UTF-8" in said.message


async def test_a_string_in_the_params_that_is_not_utf8(served: Any, refusal: Refusal) -> None:
    request = Request(analyzer="dla")
    request.params["prompt"] = "abcdef"
    data = request.SerializeToString().replace(b"abcdef", b"\xff\xfe\xfdabc")
    said = await refusal(raw(served.public, data))
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_UTF8")


async def test_params_nested_beyond_what_the_parser_takes(served: Any, refusal: Refusal) -> None:
    value = b"\x1a\x01x"  # string_value: "x"
    for _ in range(120):
        entry = b"\x0a" + _varint(len(value)) + value  # ListValue.values
        value = b"\x32" + _varint(len(entry)) + entry  # Value.list_value
    field = b"\x0a\x01a\x12" + _varint(len(value)) + value  # Struct.fields["a"]
    struct = b"\x0a" + _varint(len(field)) + field
    data = Request(analyzer="dla").SerializeToString() + b"\x22" + _varint(len(struct)) + struct
    said = await refusal(raw(served.public, data))
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "NESTED_TOO_DEEPLY")


async def test_five_megabytes_of_params(served: Any, refusal: Refusal) -> None:
    request = Request(analyzer="dla")
    request.params["prompt"] = "x" * 5_000_000
    said = await refusal(served.analysis.Analyze(request))
    assert (said.code, said.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "REQUEST_TOO_LARGE")
    assert str(request.ByteSize()) in said.message
    assert "4194304" in said.message
    assert said.metadata == {"bytes": str(request.ByteSize()), "max_bytes": "4194304"}
    assert served.executor.requests == []
    await still_serves(served)


async def test_beyond_the_transport_limit_the_server_goes_on(served: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in raw(served.public, bytes(TRANSPORT_BYTES + 1)):
            pass
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    await still_serves(served)


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("analyzer", Request()),
        ("analyzer", Request(analyzer="../../etc/passwd")),
        ("analyzer", Request(analyzer="a b")),
        ("model", Request(analyzer="dla", model="../x")),
        ("model", Request(analyzer="dla", model="m" * 129)),
        ("request_id", Request(analyzer="dla", request_id="with space")),
        ("request_id", Request(analyzer="dla", request_id="x" * 129)),
        ("priority", Request(analyzer="dla", priority=77)),  # type: ignore[arg-type]
        ("tensors['no/name']", Request(analyzer="dla", tensors={"no/name": results_pb2.Tensor()})),
    ],
)
async def test_a_field_outside_its_pattern(
    served: Any, refusal: Refusal, field: str, request_: Request
) -> None:
    said = await refusal(served.analysis.Analyze(request_))
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
    assert set(said.violations) == {field}
    assert field in said.message


async def test_every_fault_of_a_request_is_reported_at_once(served: Any, refusal: Refusal) -> None:
    said = await refusal(served.analysis.Analyze(Request(model="/", request_id="/")))
    assert set(said.violations) == {"analyzer", "model", "request_id"}


async def test_a_negative_timeout(served: Any, refusal: Refusal) -> None:
    request = Request(analyzer="dla")
    request.timeout.FromNanoseconds(-1)
    said = await refusal(served.analysis.Analyze(request))
    assert said.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(said.violations) == {"timeout"}


async def test_a_timeout_that_is_over_already(served: Any, refusal: Refusal) -> None:
    request = Request(analyzer="dla")
    request.timeout.FromNanoseconds(0)
    said = await refusal(served.analysis.Analyze(request))
    assert said.code is grpc.StatusCode.DEADLINE_EXCEEDED
    assert served.executor.requests == []


async def test_a_call_deadline_that_is_over_already(served: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in served.analysis.Analyze(Request(analyzer="dla"), timeout=-1):
            pass
    assert refused.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await still_serves(served)


@pytest.mark.parametrize(
    ("part", "tensor"),
    [
        ("dtype", results_pb2.Tensor(shape=[1], data=b"\0")),
        ("dtype", results_pb2.Tensor(dtype=99, shape=[1], data=b"\0")),  # type: ignore[arg-type]
        ("data", results_pb2.Tensor(dtype="DATA_TYPE_FLOAT32", shape=[2, 3], data=bytes(20))),
        ("data", results_pb2.Tensor(dtype="DATA_TYPE_FLOAT32", shape=[2], data=b"")),
        ("data", results_pb2.Tensor(dtype="DATA_TYPE_BOOL", shape=[2], data=b"\0\2")),
        ("shape", results_pb2.Tensor(dtype="DATA_TYPE_INT8", shape=[1] * 9, data=b"\0")),
        ("shape", results_pb2.Tensor(dtype="DATA_TYPE_INT8", shape=[2**32, 2**32], data=b"")),
        ("shape", results_pb2.Tensor(dtype="DATA_TYPE_INT8", shape=[0, 2**64 - 1], data=b"")),
        ("byte_length", results_pb2.Tensor(dtype="DATA_TYPE_INT8", shape=[1], data=b"\0", byte_length=9)),
        ("axes", results_pb2.Tensor(dtype="DATA_TYPE_INT8", shape=[1], data=b"\0", axes=[{}, {}])),
    ],
)
async def test_a_tensor_that_contradicts_itself(
    served: Any, refusal: Refusal, part: str, tensor: results_pb2.Tensor
) -> None:
    said = await refusal(served.analysis.Analyze(Request(analyzer="dla", tensors={"d": tensor})))
    assert (said.code, said.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_TENSOR")
    assert set(said.violations) == {f"tensors['d'].{part}"}
    await still_serves(served)


async def test_a_model_name_that_could_be_a_path(served: Any, refusal: Refusal) -> None:
    stubs = served.stubs(served.admin)
    said = await refusal(stubs.models.GetModel(models_pb2.GetModelRequest(name="../secrets")))
    assert said.code is grpc.StatusCode.INVALID_ARGUMENT
    assert set(said.violations) == {"name"}


async def test_an_unknown_model(served: Any, refusal: Refusal) -> None:
    stubs = served.stubs(served.admin)
    for call in (
        stubs.models.GetModel(models_pb2.GetModelRequest(name="nope")),
        stubs.models.LoadModel(models_pb2.LoadModelRequest(name="nope")),
        stubs.models.UnloadModel(models_pb2.UnloadModelRequest(name="nope")),
    ):
        said = await refusal(call)
        assert (said.code, said.reason) == (grpc.StatusCode.NOT_FOUND, "UNKNOWN_MODEL")


def _varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])
