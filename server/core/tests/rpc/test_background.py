"""What a daemon does beside its calls: reading its settings again, and noticing that a task of its own died."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator
from typing import Any

import pytest
import structlog

from lensd_proto.v1 import (
    server_pb2,
    server_pb2_grpc,
)
from lensd_server.engine.events import ModelStatus
from lensd_server.settings import LimitSettings, Settings, SettingsError
from server.core.tests.rpc.running import settings, until


def reloads(parts: Any, outcome: str) -> float:
    return parts.metrics.registry.get_sample_value("lensd_config_reloads_total", {"outcome": outcome}) or 0.0


async def test_sighup_takes_over_what_it_can(parts: Any, start: Any) -> None:
    new = settings(grace_s=1.5, listen="127.0.0.1:1")
    new = new.model_copy(update={"limits": LimitSettings(max_analyses=7)})
    run = await start(reread=lambda: new)
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: reloads(parts, "ok") == 1)
    assert [limits.max_analyses for limits in parts.limits] == [7]
    info = await server_pb2_grpc.ServerServiceStub(run.channel()).GetServerInfo(
        server_pb2.GetServerInfoRequest()
    )
    assert info.limits.max_analyses == 7
    assert run.daemon._settings.server.grace_s == 1.5
    assert run.daemon._settings.server.listen == "127.0.0.1:0"


@pytest.mark.parametrize("mistake", [SettingsError("limits.max_analyses: no"), RecursionError(), OSError()])
async def test_a_wrong_new_configuration_changes_nothing_and_the_next_one_is_read(
    parts: Any, start: Any, mistake: Exception
) -> None:
    readings = iter([mistake, settings()])

    def reread() -> Settings:
        reading = next(readings)
        if isinstance(reading, Exception):
            raise reading
        return reading

    run = await start(reread=reread)
    with structlog.testing.capture_logs() as lines:
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: reloads(parts, "refused") == 1)
        assert parts.limits == []
        assert await run.probe("/readyz") == 200
        os.kill(os.getpid(), signal.SIGHUP)
        await until(lambda: reloads(parts, "ok") == 1)
    refused, taken = [line for line in lines if line.get("caller") == "signal SIGHUP"]
    assert "refused" in refused["event"]
    assert refused["problem"].startswith(str(mistake) or type(mistake).__name__)
    assert (taken["applied"], taken["needs_restart"]) == ((), ())


async def test_a_task_that_dies_ends_the_daemon_instead_of_letting_health_lie(parts: Any, start: Any) -> None:
    watch = parts.models.watch
    fail = asyncio.Event()

    async def failing() -> AsyncGenerator[ModelStatus]:
        async for status in watch():
            yield status
            await fail.wait()
            raise ZeroDivisionError

    parts.models.watch = failing
    run = await start()
    assert await run.probe("/readyz") == 200
    with structlog.testing.capture_logs() as lines:
        fail.set()
        await asyncio.wait_for(run.task, 20)
    assert run.daemon.defeat == "its task follow_models failed"
    (said,) = [line for line in lines if "exc_info" in line]
    assert (said["task"], type(said["exc_info"])) == ("_follow_models", ZeroDivisionError)
