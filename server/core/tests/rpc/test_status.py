"""Errors become statuses with details that fit."""

import grpc
import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, QuotaFailure, RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st

from lensd_api import errors
from lensd_api.errors import (
    CallerShareTaken,
    FieldViolation,
    InvalidParams,
    LensdError,
    QueueFull,
    QuotaExceeded,
)
from lensd_server.rpc.status import MAX_BYTES, code_of, to_status, trailing_metadata


def details(status: Status, kind: type) -> list:
    found = []
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            found.append(message)
    return found


def tree(root: type[LensdError]) -> list[type[LensdError]]:
    return [root, *(deeper for child in root.__subclasses__() for deeper in tree(child))]


@pytest.mark.parametrize("error", tree(LensdError))
def test_every_status_in_the_error_tree_is_a_grpc_code(error: type[LensdError]) -> None:
    assert error.status in grpc.StatusCode.__members__


def test_a_status_that_a_plugin_invented_is_internal() -> None:
    class Odd(LensdError):
        status = "TEAPOT"

    assert code_of(Odd("short and stout")) is grpc.StatusCode.INTERNAL


def test_error_info_is_always_there() -> None:
    status = to_status(errors.NotFound("gone", metadata={"name": "x"}))
    (info,) = details(status, ErrorInfo)
    assert (info.reason, info.domain, dict(info.metadata)) == ("NOT_FOUND", "lensd", {"name": "x"})
    assert status.code == grpc.StatusCode.NOT_FOUND.value[0]


def test_violations_become_a_bad_request() -> None:
    status = to_status(InvalidParams("no", violations=[FieldViolation("a.b[0]", "too long")]))
    (bad,) = details(status, BadRequest)
    assert [(v.field, v.description) for v in bad.field_violations] == [("a.b[0]", "too long")]


def test_an_overload_says_when_to_try_again() -> None:
    error = QueueFull("full", retry_after_s=1.5)
    status = to_status(error)
    (retry,), (quota,) = details(status, RetryInfo), details(status, QuotaFailure)
    assert retry.retry_delay.ToMilliseconds() == 1500
    assert quota.violations[0].subject == "QUEUE_FULL"
    assert dict(trailing_metadata(error, status))["grpc-retry-pushback-ms"] == "1500"


def test_without_hope_there_is_no_pushback() -> None:
    error = errors.TooLarge("never")
    assert "grpc-retry-pushback-ms" not in dict(trailing_metadata(error, to_status(error)))


def test_what_does_not_fit_is_counted() -> None:
    violations = [FieldViolation(f"prompts[{i}]", "is wrong " * 20) for i in range(500)]
    (bad,) = details(to_status(InvalidParams("many", violations=violations)), BadRequest)
    kept = len(bad.field_violations) - 1
    assert 5 < kept < 500
    assert bad.field_violations[-1].description == f"and {500 - kept} more violations"


@given(
    message=st.text(max_size=3000),
    fields=st.lists(st.tuples(st.text(max_size=600), st.text(max_size=2000)), max_size=30),
    metadata=st.dictionaries(st.text(max_size=300), st.text(max_size=900), max_size=30),
)
def test_message_and_details_stay_below_the_cap(
    message: str, fields: list[tuple[str, str]], metadata: dict[str, str]
) -> None:
    from urllib.parse import quote

    error = InvalidParams(message, violations=[FieldViolation(*field) for field in fields], metadata=metadata)
    status = to_status(error)
    assert len(quote(status.message)) + status.ByteSize() <= MAX_BYTES
    (info,) = details(status, ErrorInfo)
    assert info.reason == "INVALID_PARAMS"


def test_a_used_up_quota_says_whose_and_which_and_when_to_come_back() -> None:
    error = QuotaExceeded(
        caller="trainer", quota="tokens_per_minute", limit=600, unit="tokens a minute", retry_after_s=2.5
    )
    status = to_status(error)
    quota, retry = QuotaFailure(), RetryInfo()
    assert any(detail.Unpack(quota) for detail in status.details)
    assert any(detail.Unpack(retry) for detail in status.details)
    (violation,) = quota.violations
    assert (violation.subject, violation.quota_id, violation.quota_value) == (
        "trainer",
        "tokens_per_minute",
        600,
    )
    assert "600 tokens a minute" in violation.description
    assert retry.retry_delay.ToMilliseconds() == 2500


def test_a_taken_share_travels_like_a_quota_under_a_reason_of_its_own() -> None:
    status = to_status(CallerShareTaken(caller="gateway", limit=192, unit="analyses", retry_after_s=0.5))
    assert status.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
    (info,), (quota,), (retry,) = (details(status, kind) for kind in (ErrorInfo, QuotaFailure, RetryInfo))
    assert (info.reason, info.metadata["quota"]) == ("CALLER_SHARE", "limits.caller_share")
    (violation,) = quota.violations
    assert (violation.subject, violation.quota_id, violation.quota_value) == (
        "gateway",
        "limits.caller_share",
        192,
    )
    assert retry.retry_delay.ToMilliseconds() == 500
