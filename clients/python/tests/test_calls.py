"""Calls: what is sent, how failures arrive, when a call is tried again."""

from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf import json_format

import lensd_client as L
from lensd_proto.v1 import analysis_pb2, results_pb2


def test_rich_details_become_an_exception_with_everything(
    fake: Any, lens: L.Client, new_script: Any, new_status: Any
) -> None:
    status = new_status(
        grpc.StatusCode.INVALID_ARGUMENT,
        "invalid parameters",
        reason="INVALID_PARAMS",
        violations={"prompt": "is empty", "top_k": "must be positive"},
        metadata={"analyzer": "dla"},
    )
    fake.play(new_script().abort(grpc.StatusCode.INVALID_ARGUMENT, "invalid parameters", status=status))
    with pytest.raises(L.InvalidArgument) as caught:
        lens.analyze("dla").finish()
    error = caught.value
    assert (error.code, error.reason) == ("INVALID_ARGUMENT", "INVALID_PARAMS")
    assert error.metadata == {"analyzer": "dla"}
    assert [v.field for v in error.violations] == ["prompt", "top_k"]
    assert "top_k: must be positive" in str(error)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("INVALID_ARGUMENT", L.InvalidArgument),
        ("NOT_FOUND", L.NotFound),
        ("FAILED_PRECONDITION", L.FailedPrecondition),
        ("DEADLINE_EXCEEDED", L.DeadlineExceeded),
        ("CANCELLED", L.Cancelled),
        ("PERMISSION_DENIED", L.PermissionDenied),
        ("UNAUTHENTICATED", L.Unauthenticated),
        ("UNIMPLEMENTED", L.Unimplemented),
        ("INTERNAL", L.Internal),
        ("ABORTED", L.LensdError),
    ],
)
def test_every_status_has_its_exception(
    fake: Any, lens: L.Client, new_script: Any, new_status: Any, code: str, kind: type[L.LensdError]
) -> None:
    number = grpc.StatusCode[code]
    fake.play(new_script().abort(number, "no", status=new_status(number, "no", reason="WHY")))
    with pytest.raises(L.LensdError) as caught:
        lens.analyze("dla").finish()
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.reason, caught.value.message) == (code, "WHY", "no")


def test_a_refused_call_is_tried_again_when_the_server_says(
    fake: Any, lens: L.Client, new_script: Any, new_status: Any
) -> None:
    status = new_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason="QUEUE_FULL", retry_s=0.01)
    for _ in range(2):
        fake.play(
            new_script().abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", status=status, pushback_ms=10)
        )
    fake.play(new_script().accepted().completed())
    assert lens.analyze("dla").finish().is_finished
    assert len(fake.requests) == 3


def test_a_negative_pushback_is_obeyed(fake: Any, lens: L.Client, new_script: Any, new_status: Any) -> None:
    status = new_status(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason="TOO_LARGE", retry_s=2.5)
    fake.play(new_script().abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", status=status, pushback_ms=-1))
    with pytest.raises(L.ResourceExhausted) as caught:
        lens.analyze("dla").finish()
    assert caught.value.retry_after_s == 2.5
    assert len(fake.requests) == 1


def test_at_most_five_attempts_are_made(fake: Any, lens: L.Client, new_script: Any) -> None:
    for _ in range(6):
        fake.play(new_script().abort(grpc.StatusCode.UNAVAILABLE, "draining", pushback_ms=1))
    with pytest.raises(L.Unavailable):
        lens.analyze("dla").finish()
    assert len(fake.requests) == 5


def test_nothing_is_tried_again_after_the_first_message(
    fake: Any, lens: L.Client, new_script: Any, new_status: Any
) -> None:
    status = new_status(grpc.StatusCode.UNAVAILABLE, "draining", reason="DRAINING")
    fake.play(new_script().accepted().abort(grpc.StatusCode.UNAVAILABLE, "draining", status=status))
    with pytest.raises(L.Unavailable) as caught:
        lens.analyze("dla").finish()
    assert caught.value.reason == "DRAINING"
    assert len(fake.requests) == 1


def test_a_server_that_is_not_there_is_named_with_what_to_do(fake: Any) -> None:
    with L.Client("127.0.0.1:1") as lens:
        with pytest.raises(L.ServerUnavailable, match=r"127\.0\.0\.1:1 .*refused.*lensd serve"):
            lens.models()
        with pytest.raises(L.ServerUnavailable, match=r"127\.0\.0\.1:1 .*lensd serve"):
            lens.wait_until_ready(0.05)


async def test_the_async_client_names_it_too() -> None:
    async with L.AsyncClient("127.0.0.1:1") as lens:
        with pytest.raises(L.ServerUnavailable, match="lensd serve"):
            await lens.models()
        with pytest.raises(L.ServerUnavailable, match="lensd serve"):
            await lens.wait_until_ready(0.05)


def test_a_ready_server_is_ready(lens: L.Client) -> None:
    lens.wait_until_ready(10)


def test_parameters_come_as_mapping_and_keywords(fake: Any, lens: L.Client, new_script: Any) -> None:
    fake.play(new_script().accepted().completed())
    lens.analyze(
        "dla",
        "tiny",
        {"prompt": "x", "positions": (0, -1)},
        unit="head",
        k=np.int64(3),
        deep={"a": [None, True]},
    ).finish()
    (request,) = fake.requests
    assert (request.analyzer, request.model) == ("dla", "tiny")
    assert json_format.MessageToDict(request.params) == {
        "prompt": "x",
        "positions": [0, -1],
        "unit": "head",
        "k": 3,
        "deep": {"a": [None, True]},
    }
    assert request.priority == analysis_pb2.PRIORITY_INTERACTIVE
    assert not request.HasField("timeout")


def test_what_cannot_be_sent_is_refused_here_with_its_place(lens: L.Client) -> None:
    with pytest.raises(TypeError, match="given in `params` and as keywords: prompt"):
        lens.analyze("dla", params={"prompt": "x"}, prompt="y")
    with pytest.raises(TypeError, match=r"params\['a'\]\[1\]: set"):
        lens.analyze("dla", a=[1, {2}])
    with pytest.raises(ValueError, match=r"params\['seed'\].*2\^53"):
        lens.analyze("dla", seed=2**60)
    with pytest.raises(TypeError, match=r"tensors\['d'\]: complex128"):
        lens.analyze("dla", tensors={"d": np.ones(2, complex)})
    with pytest.raises(ValueError, match="priority"):
        lens.analyze("dla", priority="urgent")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="request_id"):
        lens.analyze("dla", request_id="a b")
    with pytest.raises(ValueError, match="timeout_s"):
        lens.analyze("dla", timeout_s=0)


def test_tensors_travel_little_endian_and_row_major(fake: Any, lens: L.Client, new_script: Any) -> None:
    fake.play(new_script().accepted().completed())
    array = np.arange(6, dtype=">f4").reshape(2, 3).T
    lens.analyze("dla", tensors={"direction": array}, priority="batch", request_id="mine").finish()
    (request,) = fake.requests
    tensor = request.tensors["direction"]
    assert tensor.dtype == results_pb2.DATA_TYPE_FLOAT32
    assert list(tensor.shape) == [3, 2]
    assert tensor.data == np.array([0, 3, 1, 4, 2, 5], "<f4").tobytes()
    assert tensor.byte_length == 24
    assert (request.priority, request.request_id) == (analysis_pb2.PRIORITY_BATCH, "mine")


def test_the_token_goes_with_the_call_and_into_no_repr(fake: Any, new_script: Any) -> None:
    fake.play(new_script().accepted().completed())
    with L.Client(fake.target, token="s3cret") as lens:
        lens.analyze("dla").finish()
        assert "s3cret" not in f"{lens!r} {lens._connection!r}"
    assert fake.metadata[0]["authorization"] == "Bearer s3cret"


def test_the_catalogue_comes_as_values(lens: L.Client) -> None:
    (model,) = lens.models()
    assert (model.name, model.state, model.resident_bytes) == ("tiny", "resident", 1234)
    assert model.replicas == (L.Replica("resident", "cpu", 2, "", ""),)
    assert lens.model("tiny").anatomy == {"n_layers": 2}
    (analyzer,) = lens.analyzers()
    assert analyzer.qualified_name == "lensd-dla:dla"
    assert lens.analyzer("dla").examples[0].params == {"prompt": "It's"}
    assert [p.status for p in lens.plugins()] == ["broken"]
    assert [a.created.year for a in lens.artifacts()] == [2023]
    lens.delete_artifact("probe@3")
    assert lens.server_info().limits.max_timeout_s is None
    assert lens.load_status().models[0].queued_tokens == 20
    assert [a.age_s for a in lens.analyses()] == [1.5]
    assert (lens.cancel_analysis("r9"), lens.cancel_analysis("no")) == (True, False)
    assert (lens.release_plugin("lensd-bad"), lens.release_plugin("lensd-dla")) == (True, False)
    assert [(s.stage, s.fraction) for s in lens.load("tiny")] == [("read", 0.5), ("ready", 1.0)]
    assert [m.state for m in lens.watch_models()] == ["loading", "resident"]
    assert lens.health() == "SERVING"
    with pytest.raises(L.NotFound):
        lens.health("no.such")
    with pytest.raises(L.NotFound, match="no model other"):
        lens.model("other")


def test_limits_say_what_a_caller_may_have_before_it_asks(lens: L.Client) -> None:
    limits = lens.server_info().limits
    assert (limits.max_queued_rows, limits.max_admitted_tokens, limits.max_admitted_bytes) == (
        4096,
        1000,
        1 << 32,
    )
    assert (limits.caller_share, limits.max_streams_per_caller, limits.send_timeout_s) == (0.75, 512, 30.0)
    assert (limits.max_artifact_bytes, limits.max_artifacts_bytes) == (1 << 30, 1 << 35)
    assert limits.quota == L.Quota(
        max_analyses=4, rows_per_minute=300, tokens_per_minute=None, bytes_per_minute=5_000_000
    )


def test_admin_calls_go_to_the_admin_target(fake: Any) -> None:
    with L.Client("127.0.0.1:1", admin_target=fake.target) as lens:
        assert len(lens.analyses()) == 1


def test_refused_admin_calls_say_which_setting_is_missing(lens: L.Client) -> None:
    with pytest.raises(L.PermissionDenied, match="admin_target"):
        lens.unload("tiny")


async def test_the_async_catalogue_is_the_same(fake: Any) -> None:
    async with L.AsyncClient(fake.target) as lens:
        await lens.wait_until_ready(10)
        assert [m.name for m in await lens.models()] == ["tiny"]
        assert (await lens.model("tiny")).anatomy == {"n_layers": 2}
        assert (await lens.analyzer("dla")).summary == "Attributes logits."
        assert [s.fraction async for s in lens.load("tiny")] == [0.5, 1.0]
        assert [m.state async for m in lens.watch_models()] == ["loading", "resident"]
        assert (await lens.cancel_analysis("r9")) is True
        assert (await lens.release_plugin("lensd-bad")) is True
        assert (await lens.server_info()).version == "0.1.0"
        with pytest.raises(L.PermissionDenied):
            await lens.unload("tiny")
