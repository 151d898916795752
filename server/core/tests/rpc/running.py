"""A daemon that runs in a test's own loop, over the scripted engine."""

import asyncio
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from lensd_proto.v1 import (
    analysis_pb2,
    analysis_pb2_grpc,
)
from lensd_server.daemon import Daemon, Engine
from lensd_server.plugins import AnalyzerRegistry
from lensd_server.settings import LimitSettings, Settings
from lensd_server.telemetry.metrics import Metrics

READY = re.compile(r"^lensd ready grpc=(\S+) metrics=(\S+) admin=(\S+) models=(\S*)$")
Request = analysis_pb2.AnalyzeRequest


def settings(**server: Any) -> Settings:
    free = {"listen": "127.0.0.1:0", "admin_listen": "127.0.0.1:0", "metrics_listen": "127.0.0.1:0"}
    models = {
        "tiny": {"source": "dir:/tiny", "preload": True},
        "other": {"source": "dir:/other"},
    }
    return Settings.model_validate({"server": {**free, **server}, "models": models})


@dataclass
class Run:
    """A daemon that runs in the test's loop."""

    daemon: Daemon
    task: "asyncio.Task[None]"
    grpc: str
    metrics: str
    admin: str
    models: str
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def channel(self, address: str | None = None) -> grpc.aio.Channel:
        self.channels.append(grpc.aio.insecure_channel(address or self.grpc))
        return self.channels[-1]

    def analyze(self, request: Request) -> Any:
        return analysis_pb2_grpc.AnalysisServiceStub(self.channel()).Analyze(request)

    async def probe(self, path: str) -> int:
        """Status of a GET on the metrics port."""

        def get() -> int:
            try:
                with urllib.request.urlopen(f"http://{self.metrics}{path}", timeout=10) as response:
                    return int(response.status)
            except urllib.error.HTTPError as error:
                error.close()
                return error.code

        return await asyncio.to_thread(get)


@dataclass
class Parts:
    """The scripted engine; whether it was closed is remembered."""

    executor: Any
    models: Any
    artifacts: Any
    metrics: Metrics = field(default_factory=Metrics)
    closed: bool = False
    #: Limits the engine was told.
    limits: list[LimitSettings] = field(default_factory=list)

    def engine(self) -> Engine:
        def close() -> None:
            self.closed = True

        return Engine(
            self.models,
            self.executor,
            self.artifacts,
            AnalyzerRegistry(),
            self.metrics,
            ["cpu"],
            close,
            limit=self.limits.append,
        )


async def until(seen: Callable[[], bool]) -> None:
    """Lets the daemon, which runs in this loop, work until ``seen``."""
    async with asyncio.timeout(20):
        while not seen():  # noqa: ASYNC110  a counter has no event
            await asyncio.sleep(0.01)
