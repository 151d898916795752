"""Quotas: what one caller has used, another still has."""

import pytest

from lensd_api.errors import QuotaExceeded
from lensd_api.hookspecs import AnalysisRecord
from lensd_server.access import quotas as module
from lensd_server.access.quotas import Quotas
from lensd_server.settings import CallerQuota, QuotaSettings


class Clock:
    """Stands still until it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def used(caller: str, tokens: int, rows: int = 1) -> AnalysisRecord:
    usage = {"tokens": tokens, "rows": rows}
    return AnalysisRecord("r", "a", "m", outcome="cancelled", usage=usage, caller=caller)


def refused(quotas: Quotas, caller: str) -> QuotaExceeded | None:
    try:
        with quotas.analysis(caller):
            return None
    except QuotaExceeded as error:
        return error


def test_without_bounds_nothing_is_kept_of_anybody(clock: Clock) -> None:
    quotas = Quotas(QuotaSettings(), clock=clock)
    quotas.spend_bytes("a", 10**12)
    quotas.finished(used("a", 10**12))
    assert refused(quotas, "a") is None
    assert not quotas._accounts


def test_analyses_at_once_are_bounded_for_each(clock: Clock) -> None:
    quotas = Quotas(QuotaSettings(max_analyses=1), clock=clock)
    with quotas.analysis("a"):
        error = refused(quotas, "a")
        assert error is not None
        assert (error.caller, error.quota, error.limit, error.retry_after_s) == ("a", "max_analyses", 1, 1.0)
        assert refused(quotas, "b") is None
    assert refused(quotas, "a") is None


def test_who_has_enough_is_told_to_come_back_when_its_own_analyses_should_end(clock: Clock) -> None:
    quotas = Quotas(QuotaSettings(max_analyses=2), clock=clock)
    for caller, seconds in (("a", 4.0), ("a", 8.0), ("b", 40.0)):
        with quotas.analysis(caller):
            clock.now += seconds
    clock.now += 3600.0
    with quotas.analysis("a"), quotas.analysis("a"):
        told = [error.retry_after_s for _ in range(3) if (error := refused(quotas, "a")) is not None]
    assert told == pytest.approx([3.0, 6.0, 6.0])


def test_what_was_used_beyond_is_owed_and_the_wait_is_exact(clock: Clock) -> None:
    quotas = Quotas(QuotaSettings(tokens_per_minute=60), clock=clock)
    assert refused(quotas, "a") is None
    quotas.finished(used("a", 90))
    error = refused(quotas, "a")
    assert error is not None
    assert error.quota == "tokens_per_minute"
    assert error.retry_after_s == pytest.approx(31)
    assert refused(quotas, "b") is None
    clock.now += 30.0
    assert refused(quotas, "a") is not None
    clock.now += 1.0
    assert refused(quotas, "a") is None


def test_rows_are_bounded_however_short_they_are(clock: Clock) -> None:
    quotas = Quotas(QuotaSettings(rows_per_minute=60, tokens_per_minute=10**6), clock=clock)
    quotas.finished(used("a", tokens=4, rows=64))
    error = refused(quotas, "a")
    assert error is not None
    assert (error.quota, error.limit, error.reason) == ("rows_per_minute", 60, "QUOTA_EXCEEDED")
    assert error.retry_after_s == pytest.approx(5)
    assert refused(quotas, "b") is None
    clock.now += 5.0
    assert refused(quotas, "a") is None


def test_nobody_saves_up_more_than_a_minute(clock: Clock) -> None:
    quotas = Quotas(QuotaSettings(tokens_per_minute=60), clock=clock)
    quotas.finished(used("a", 1))
    clock.now += 3600.0
    quotas.finished(used("a", 60))
    assert refused(quotas, "a") is not None


def test_bytes_bound_reading_too(clock: Clock) -> None:
    quotas = Quotas(QuotaSettings(bytes_per_minute=600), clock=clock)
    quotas.check_bytes("a")
    quotas.spend_bytes("a", 610)
    with pytest.raises(QuotaExceeded, match=r"a has used up its bytes_per_minute of 600 bytes a minute"):
        quotas.check_bytes("a")
    assert refused(quotas, "a") is not None
    quotas.check_bytes("b")


def test_a_named_caller_has_bounds_of_its_own_and_a_reload_changes_them(clock: Clock) -> None:
    settings = QuotaSettings(tokens_per_minute=60, callers={"trainer": CallerQuota(tokens_per_minute=6000)})
    quotas = Quotas(settings, clock=clock)
    for caller in ("trainer", "other"):
        quotas.finished(used(caller, 61))
    assert refused(quotas, "trainer") is None
    assert refused(quotas, "other") is not None
    quotas.take_over(settings)
    assert refused(quotas, "other") is not None, "a reload that changes nothing forgives nothing"
    quotas.take_over(QuotaSettings(tokens_per_minute=100))
    assert refused(quotas, "other") is None


def test_memory_is_bounded_by_the_number_of_accounts(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_ACCOUNTS", 3)
    quotas = Quotas(QuotaSettings(max_analyses=1), clock=clock)
    with quotas.analysis("busy"):
        for number in range(10):
            assert refused(quotas, f"host-{number}") is None
        assert len(quotas._accounts) == 3
        assert refused(quotas, "busy") is not None
