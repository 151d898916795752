"""A batcher whose forwards a test can hold, and an executor over tiny models."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lensd_api import Analyzer, Capture, LensdError, Row, Site
from lensd_server.engine.anatomy.capture import run_batch
from lensd_server.engine.batching.batch import PreparedRow
from lensd_server.engine.batching.batcher import Batcher, BatchLimits
from lensd_server.engine.batching.call import ForwardCall
from lensd_server.engine.batching.price import Price
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.batching.turn import Turn
from lensd_server.engine.events import AnalysisEvent, AnalysisRequest, Found, RegisteredAnalyzer
from lensd_server.engine.executor import LocalExecutor
from lensd_server.engine.handle import prepare
from lensd_server.engine.models.loading import LoadedModel
from lensd_server.engine.models.residency import Residency
from lensd_server.engine.observers import Observers
from lensd_server.engine.storage import Storage
from lensd_server.settings import LimitSettings, ModelSettings
from lensd_server.tiny_engine import TinyLoader
from server.core.tests.engine.runtime.bounded import PATIENCE_S, Bounded, Make

torch.set_num_threads(2)

RESIDUAL: Capture[Any] = Capture(sites=frozenset({Site.FINAL_RESIDUAL}))


def on_cpu(name: str, replicas: int = 1) -> ModelSettings:
    """Settings of a tiny model, where tests can compare it with the module itself, GPU or not."""
    return ModelSettings(source=f"tiny:{name}", device="cpu", replicas=replicas)


@cache
def load_tiny(name: str) -> LoadedModel:
    return TinyLoader(Turn()).load(name, on_cpu(name), lambda stage, share: None)


@pytest.fixture(scope="session")
def tiny() -> Callable[[str], LoadedModel]:
    """Tiny models by name, loaded once: run them, do not change them."""
    return load_tiny


class Forwards:
    """Stands in for ``run_batch``: counts forwards, can hold them, and can make them fail."""

    def __init__(self) -> None:
        self.batches: list[list[tuple[int, ...]]] = []
        self.fault: Callable[[list[tuple[int, ...]]], Exception | None] = lambda rows: None
        self.entered = threading.Semaphore(0)
        self._open = threading.Event()
        self._open.set()

    def hold(self) -> None:
        """The next forward waits inside until :meth:`release`."""
        self._open.clear()

    def release(self) -> None:
        """Lets forwards run."""
        self._open.set()

    def wait_until_inside(self) -> None:
        """Returns when a forward has begun."""
        assert self.entered.acquire(timeout=PATIENCE_S)

    def __call__(self, model: Any, ids: Tensor, mask: Tensor, *rest: Any) -> list[dict[Site, Tensor]]:
        lengths = rest[1]
        rows = [tuple(row[:n]) for row, n in zip(ids.tolist(), lengths, strict=True)]
        self.batches.append(rows)
        self.entered.release()
        assert self._open.wait(PATIENCE_S)
        if (fault := self.fault(rows)) is not None:
            raise fault
        return run_batch(model, ids, mask, *rest)


@dataclass
class Bench:
    """A batcher over tiny Llama with its forwards in the test's hand."""

    loaded: LoadedModel
    forwards: Forwards
    batcher: Batcher

    def submit(
        self,
        *rows: Sequence[int],
        capture: Capture[Any] = RESIDUAL,
        ticket: Ticket | None = None,
    ) -> "Future[ForwardCall]":
        """Queues rows; the future holds the call once it has settled."""
        anatomy = self.loaded.card.anatomy
        prepared = [prepare(Row(tuple(row)), capture, anatomy) for row in rows]
        return self.submit_prepared(prepared, capture, ticket)

    def submit_prepared(
        self, rows: Sequence[PreparedRow], capture: Capture[Any], ticket: Ticket | None = None
    ) -> "Future[ForwardCall]":
        """Queues rows that may have masks and positions."""
        future: Future[ForwardCall] = Future()
        anatomy = self.loaded.card.anatomy
        call = ForwardCall(
            ticket=ticket or Ticket(analyzer="bench"),
            rows=rows,
            sites=capture.sites,
            layers=tuple(range(anatomy.n_layers)) if capture.layers is None else capture.layers,
            reduce=None if capture.reduce is None else capture.reduce.fn,
            args=None if capture.reduce is None else capture.reduce.args,
            settled=future.set_result,
        )
        call.ticket.on_cancel(lambda: self.batcher.withdraw(call, call.ticket.error() or LensdError("?")))
        self.batcher.submit(call)
        return future

    def outcome(self, future: "Future[ForwardCall]") -> ForwardCall:
        """The settled call."""
        return future.result(PATIENCE_S)

    def occupy(self) -> "Future[ForwardCall]":
        """Holds the device with a row of its own, so that what comes next has to queue."""
        self.forwards.hold()
        future = self.submit([5])
        self.forwards.wait_until_inside()
        return future


@pytest.fixture
def make_bench() -> Iterator[Callable[..., Bench]]:
    """Builds benches; arguments are those of :class:`BatchLimits`."""
    made: list[Bench] = []

    def make(*, model: str = "llama", observers: Observers | None = None, **limits: Any) -> Bench:
        loaded, forwards = load_tiny(model), Forwards()
        bounds = BatchLimits(**{"max_tokens": 512, "price": Price.linear(1000.0, 1.0), **limits})
        batcher = Batcher(model, loaded.model, loaded.device, bounds, observers=observers, run=forwards)
        made.append(Bench(loaded, forwards, batcher))
        return made[-1]

    yield make
    for bench in made:
        bench.forwards.release()
        bench.batcher.close()


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


@dataclass
class Lookup:
    """Analyzers under test, by name."""

    analyzers: dict[str, Analyzer] = field(default_factory=dict[str, Analyzer])

    def resolve(self, name: str) -> RegisteredAnalyzer:
        return RegisteredAnalyzer(self.analyzers[name], name, "tests", "1.2.3")


@dataclass
class Rig:
    """An executor over one or more tiny models, and the asynchronous ways to use it."""

    lookup: Lookup
    residency: Residency
    executor: LocalExecutor

    def start(
        self, analyzer: Analyzer, /, *, model: str = "", request: dict[str, Any] | None = None, **params: Any
    ) -> AsyncGenerator[AnalysisEvent, None]:
        """The events of one analysis."""
        self.lookup.analyzers[analyzer.name] = analyzer
        return self.executor.run(
            AnalysisRequest(
                analyzer=analyzer.name, model=model, params=params, **{"request_id": "r", **(request or {})}
            )
        )

    async def events(self, analyzer: Analyzer, /, **how: Any) -> list[AnalysisEvent]:
        """All of them."""
        async with asyncio.timeout(PATIENCE_S):
            async with aclosing(self.start(analyzer, **how)) as stream:
                return [event async for event in stream]

    async def results(self, analyzer: Analyzer, /, **how: Any) -> list[Any]:
        """Only the results."""
        return [e.result for e in await self.events(analyzer, **how) if isinstance(e, Found)]

    async def settled(self) -> None:
        """Until nothing runs."""
        assert await self.executor.settled(PATIENCE_S)

    def resident(self, name: str) -> Any:
        """What is in memory, without a lease."""
        return self.residency.resident(name)


class CachedLoader:
    """Hands out the tiny models that are there already."""

    def load(
        self, name: str, settings: ModelSettings, report: Callable[[str, float], None], claim: Any
    ) -> LoadedModel:
        report("read", 0.4)
        return load_tiny(settings.source.removeprefix("tiny:"))


@pytest.fixture
def make_rig(tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """Builds executors: ``models`` by name, limits as keywords."""
    made: list[Rig] = []

    def make(
        models: Sequence[str] = ("llama",),
        *,
        loader: Any = None,
        observers: Observers | None = None,
        heartbeat_s: float = 10.0,
        devices: Any = None,
        replicas: int = 1,
        **limits: Any,
    ) -> Rig:
        device = "cpu" if devices is None else "auto"
        configured = {
            name: ModelSettings(source=f"tiny:{name}", device=device, replicas=replicas) for name in models
        }
        bounds = LimitSettings(**limits)
        residency = Residency(
            configured, loader or CachedLoader(), bounds, devices=devices, observers=observers
        )
        lookup = Lookup()
        executor = LocalExecutor(
            lookup,
            residency,
            bounds,
            observers,
            storage=Storage.under(tmp_path, bounds),
            cpu_turn=Turn(),
            heartbeat_s=heartbeat_s,
        )
        made.append(Rig(lookup, residency, executor))
        return made[-1]

    yield make
    for rig in made:
        rig.executor.close()
        rig.residency.close()


@pytest.fixture
def rig(make_rig: Callable[..., Rig]) -> Rig:
    return make_rig()


@pytest.fixture
def make() -> Iterator[Make]:
    """Builds a residency of two models in a memory for one and a half, unless told otherwise."""
    made: list[Bounded] = []

    def build(**how: Any) -> Bounded:
        how.setdefault("sizes", {"a": 100, "b": 100})
        made.append(Bounded(**how))
        return made[-1]

    yield build
    for bounded in made:
        bounded.close()
