"""Measurements lead to the trace they belong to, and to nothing else a caller says."""

import asyncio
import contextvars

import pytest
from prometheus_client.openmetrics.exposition import generate_latest

from lensd_api.hookspecs import AnalysisRecord
from lensd_server.engine.loop import AnalysisLoop
from lensd_server.telemetry.exemplars import belongs_to, exemplar, sampled_trace
from lensd_server.telemetry.metrics import Metrics

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"


def test_the_trace_of_a_recorded_call_is_found() -> None:
    assert sampled_trace([("user-agent", "x"), ("traceparent", PARENT)]) == TRACE
    assert sampled_trace([("traceparent", PARENT.replace("00-4", "01-4", 1) + "-more")]) == TRACE


@pytest.mark.parametrize(
    "value",
    [
        PARENT.removesuffix("01") + "00",
        f"00-{'0' * 32}-00f067aa0ba902b7-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-00f067aa0ba902b7-01",
        f"00-{TRACE.upper()}-00f067aa0ba902b7-01",
        f"00-{TRACE}-00f067aa0ba902b7",
        f" {PARENT}",
        "a prompt",
        "",
        PARENT.encode(),
    ],
)
def test_whatever_is_no_recorded_trace_is_none(value: str | bytes) -> None:
    assert sampled_trace([("traceparent", value)]) == ""


def test_it_travels_from_the_call_to_the_analysis_loop_and_no_further() -> None:
    loop, found = AnalysisLoop(), list[tuple[str, dict[str, str] | None]]()

    async def ask(name: str, done: "asyncio.Future[None]", home: asyncio.AbstractEventLoop) -> None:
        found.append((name, exemplar()))
        home.call_soon_threadsafe(done.set_result, None)

    async def call(name: str, trace_id: str) -> None:
        belongs_to(trace_id)
        home = asyncio.get_running_loop()
        done = home.create_future()
        loop.start(ask(name, done, home))
        await done

    async def calls() -> None:
        await asyncio.gather(call("traced", TRACE), call("plain", ""))

    try:
        asyncio.run(calls())
    finally:
        loop.close()
    assert dict(found) == {"traced": {"trace_id": TRACE}, "plain": None}
    assert exemplar() is None


def test_a_scrape_as_openmetrics_shows_it_beside_the_durations() -> None:
    metrics = Metrics()

    def analyse() -> None:
        belongs_to(TRACE)
        record = AnalysisRecord("r", "dla", "m", outcome="ok", seconds=0.2, usage={"queue_s": 0.01})
        metrics.started(record)
        metrics.first_result("dla", "m", 0.1)
        metrics.finished(record)

    contextvars.copy_context().run(analyse)
    lines = [line for line in generate_latest(metrics.registry).decode().splitlines() if TRACE in line]
    assert {line.partition("_bucket")[0] for line in lines} == {
        f"lensd_analysis_{stage}_seconds"
        for stage in ("queue", "forward", "compute", "first_result", "total")
    }
    assert all(f'# {{trace_id="{TRACE}"}}' in line for line in lines)
