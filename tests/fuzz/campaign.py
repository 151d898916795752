"""A bounded number of attempts against one daemon, and what must hold when they are over."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import psutil

from lensd_client import Client
from tests.bench.load.scrape import Scrape
from tests.e2e.daemon import Daemon, running_daemon, save_tiny_models
from tests.faults.site import until
from tests.faults.traffic import PROMPTS, ask, is_right
from tests.fuzz.attempts import Attempt, attempt
from tests.fuzz.messages import Analyzer, World
from tests.fuzz.wire import End, Wire

BUSY, SPARE = "llama", "gpt2"
_AT_ONCE = 96
#: How much a daemon may have grown between the middle fifth of a campaign and its last: its pools of threads
#: take some for each thread that they come to have.
_GROWTH_BYTES = 32 * 1024 * 1024
_SAMPLES = 100
_GAUGES = (
    "lensd_analyses_in_flight", "lensd_queue_rows", "lensd_queue_tokens", "lensd_model_leases", "lensd_model_hooks",
    "lensd_model_waiting", "lensd_grpc_requests_in_flight",
)  # fmt: skip


@dataclass
class Tally:
    """What came of the attempts so far. ``resident`` are sizes of the daemon, evenly spread over them."""

    ends: Counter[tuple[str, str, str]] = field(default_factory=Counter[tuple[str, str, str]])
    faults: list[tuple[Attempt, End]] = field(default_factory=list[tuple[Attempt, End]])
    resident: list[int] = field(default_factory=list[int])
    made: int = 0
    seconds: float = 0.0

    @property
    def grown_bytes(self) -> float:
        """From the middle fifth, when it was warm, to the last."""
        if len(self.resident) < 5:
            return 0.0
        fifth = len(self.resident) // 5
        return median(self.resident[-fifth:]) - median(self.resident[2 * fifth : 3 * fifth])

    @property
    def course(self) -> list[float]:
        """The median of each tenth of the sizes."""
        count = len(self.resident)
        tenths = (self.resident[i * count // 10 : (i + 1) * count // 10] for i in range(10))
        return [median(tenth) for tenth in tenths if tenth]

    def note(self, attempt: Attempt, end: End) -> None:
        """One more."""
        self.made += 1
        self.ends[attempt.method.name, end.code, end.reason] += 1
        if end.faults:
            self.faults.append((attempt, end))


@contextmanager
def fuzzed_daemon(folder: Path) -> Iterator[Daemon]:
    """A daemon with two tiny models and every installed plugin."""
    models = save_tiny_models(folder / "models", BUSY, SPARE)
    flags = [flag for name in (BUSY, SPARE) for flag in ("--model", f"{name}=dir:{models / name}")]
    environment = {"LENSD_SERVER__CACHE_DIR": str(folder / "cache"), "LENSD_SERVER__LOG_LEVEL": "error"}
    with running_daemon(folder, *flags, environment=environment) as daemon:
        yield daemon


def campaign(daemon: Daemon, seed: int, indices: range, seconds: float | None = None) -> Tally:
    """Makes the attempts ``indices`` of ``seed``, at most for ``seconds``. Raises AssertionError after them
    where something is left behind."""
    with Client(daemon.grpc, admin_target=daemon.admin) as client:
        world = _world(client)
        right = ask(client, PROMPTS[0])
        tally = asyncio.run(_attempts(daemon, seed, indices, world, seconds))
        assert daemon.process.poll() is None, f"the daemon ended:\n{daemon.log.read_text()[-5000:]}"
        until(lambda: not _left(daemon), f"nothing is left in {_GAUGES}")
        assert is_right(ask(client, PROMPTS[0]), right), "an answer has changed"
    return tally


def grew(tally: Tally) -> str:
    """What is wrong with the daemon's memory; empty when nothing is."""
    if tally.grown_bytes <= _GROWTH_BYTES:
        return ""
    return f"the daemon grew by {tally.grown_bytes / 2**20:.0f} MiB after it was warm"


def _left(daemon: Daemon) -> dict[str, float]:
    scrape = Scrape.of(daemon.metrics)
    return {name: total for name in _GAUGES if (total := scrape.total(name))}


async def _attempts(daemon: Daemon, seed: int, indices: range, world: World, seconds: float | None) -> Tally:
    tally, wire = Tally(), Wire(daemon.grpc, daemon.admin)
    process = psutil.Process(daemon.process.pid)
    began = time.monotonic()
    waiting = iter(indices)
    every = max(1, len(indices) // _SAMPLES)

    async def work() -> None:
        for index in waiting:
            if (
                seconds is not None and time.monotonic() - began > seconds
            ) or daemon.process.poll() is not None:
                return
            one = attempt(seed, index, world)
            tally.note(one, await wire.make(one))
            if tally.made % every == 0:
                tally.resident.append(process.memory_info().rss)

    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(work())
    tally.seconds = time.monotonic() - began
    await wire.close()
    return tally


def _world(client: Client) -> World:
    described = (client.analyzer(listed.name) for listed in client.analyzers())
    anatomy = client.model(BUSY).anatomy or {}
    return World(
        analyzers=tuple(
            Analyzer(one.name, one.params_schema, tuple(dict(example.params) for example in one.examples))
            for one in described
        ),
        busy=BUSY,
        spare=SPARE,
        width=int(anatomy["d_model"]),
    )
