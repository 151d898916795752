"""What a daemon holds when nobody asks anything of it, and whether that is as it was before."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lensd_client import AsyncClient
from tests.bench.load.scrape import Scrape
from tests.bench.memory import open_files, resident_bytes, threads
from tests.bench.report import Check
from tests.e2e.daemon import Daemon

_MIB = 1024 * 1024
#: What a daemon holds for those it is working for, by metric; each is zero when it is idle.
HELD = {
    "analyses in flight": "lensd_analyses_in_flight",
    "rows waiting": "lensd_queue_rows",
    "tokens waiting": "lensd_queue_tokens",
    "leases": "lensd_model_leases",
    "hooks on the model": "lensd_model_hooks",
}
TASKS = "lensd_event_loop_tasks"
#: How much resident memory may grow, and what a process may hold more than before.
GROWTH = 1.02
_SETTLE_S = 30.0
_STEADY = 3


@dataclass(frozen=True, slots=True)
class Watched:
    """A daemon to look at. What is empty cannot be looked at, and counts as such."""

    target: str
    admin: str = ""
    metrics: str = ""
    pid: int | None = None

    @classmethod
    def of(cls, daemon: Daemon) -> "Watched":
        """A daemon that this process started."""
        return cls(daemon.grpc, daemon.admin, daemon.metrics, daemon.process.pid)

    def scrape(self) -> Scrape:
        """Its metrics; empty when they cannot be read."""
        return Scrape.of(self.metrics) if self.metrics else Scrape({})


@dataclass(frozen=True, slots=True)
class Standing:
    """What is held at one moment; ``None`` for what cannot be looked at."""

    held: dict[str, float | None]
    analyses: int
    listed: int | None
    leases: int
    rows: int
    revisions: dict[str, str]
    tasks: float | None
    threads: int | None
    files: int | None
    resident: int | None

    @property
    def idle(self) -> bool:
        """Whether nothing is held for anybody."""
        counted = [*self.held.values(), self.analyses, self.listed, self.leases, self.rows]
        return not any(counted)


async def standing(daemon: Watched, models: Sequence[str]) -> Standing:
    """Looks once, from outside: the process first, before this look has connections of its own to it that
    it may be slow to close, then ``/metrics`` and the load and model calls."""
    pid = daemon.pid
    held_threads = None if pid is None else threads(pid)
    files = None if pid is None else open_files(pid)
    scrape = await asyncio.to_thread(daemon.scrape)
    async with AsyncClient(daemon.target, admin_target=daemon.admin or None) as lens:
        load = await lens.load_status()
        listed = len(await lens.analyses()) if daemon.admin else None
        revisions = {name: (await lens.model(name)).revision for name in models}
    held = {what: scrape.total(name) if scrape.has(name) else None for what, name in HELD.items()}
    return Standing(
        held=held,
        analyses=load.analyses,
        listed=listed,
        leases=sum(model.leases for model in load.models),
        rows=sum(model.queued_rows for model in load.models),
        revisions=revisions,
        tasks=scrape.total(TASKS) if scrape.has(TASKS) else None,
        threads=held_threads,
        files=files,
        resident=None if pid is None else resident_bytes(pid),
    )


#: gRPC adds a thread to its pool whenever all of them are busy; threads that leak would be as many as requests.
_SPARE = {"threads": 2}


async def settled(daemon: Watched, models: Sequence[str], like: Standing | None = None) -> Standing:
    """Waits until the daemon is idle, and holds no more tasks, threads and files than in ``like``,
    a bounded time; what it holds then is answered, idle or not."""
    until, steady = time.monotonic() + _SETTLE_S, 0
    while True:
        found = await standing(daemon, models)
        steady = steady + 1 if found.idle and not (like and _more(found, like)) else 0
        if steady == _STEADY or time.monotonic() > until:
            return found
        # longer than the daemon takes to count its tasks anew, and to close what this look opened
        await asyncio.sleep(0.5)


def compare(before: Standing, after: Standing) -> list[Check]:
    """What must be as it was."""
    checks = [
        Check(f"{what}: none", _shown(value), None if value is None else value == 0)
        for what, value in after.held.items()
    ]
    checks += [
        Check("GetLoad: no analyses, leases, rows", _load(after), _load(after) == "0, 0, 0"),
        Check(
            "ListAnalyses: empty", _shown(after.listed), None if after.listed is None else not after.listed
        ),
        Check(
            "model revisions: as before",
            "the same" if after.revisions == before.revisions else f"{before.revisions}, {after.revisions}",
            after.revisions == before.revisions,
        ),
    ]
    for what, was, now in _counted(before, after):
        spare = _SPARE.get(what, 0)
        no_more = None if was is None or now is None else now <= was + spare
        allowed = f"at most {spare} more" if spare else "no more"
        checks.append(Check(f"{what}: {allowed} than before", f"{_shown(was)}, {_shown(now)}", no_more))
    return checks


def memory_check(before: int | None, after: int | None) -> Check:
    """Resident memory at most :data:`GROWTH` times what it was."""
    what = f"resident memory: at most {GROWTH - 1:.0%} more"
    if not before or not after:
        return Check(what, "", None)
    found = f"{before / _MIB:.0f} MiB, {after / _MIB:.0f} MiB: x {after / before:.4f}"
    return Check(what, found, after <= before * GROWTH)


async def reference(daemon: Watched, model: str) -> list[float]:
    """One answer alone: the same model gives the same numbers, whatever it has done since."""
    async with AsyncClient(daemon.target) as lens:
        prompt = "The capital of France is"
        run = await lens.analyze("dla", model, prompt=prompt, unit="component", target=10)
        contributions: Any = run["contributions"]
        return contributions["value"].tolist()


def same_answer(before: Sequence[float], after: Sequence[float]) -> Check:
    """The reference before and after; rounding alone is 1e-5 of the largest value."""
    apart = max((abs(a - b) for a, b in zip(before, after, strict=True)), default=0.0)
    bound = 1e-5 * max(map(abs, before))
    return Check("the same analysis gives the same answer", f"apart by {apart:.1e}", apart <= bound)


def _counted(before: Standing, after: Standing) -> Iterator[tuple[str, float | None, float | None]]:
    yield "tasks on the event loops", before.tasks, after.tasks
    yield "threads", before.threads, after.threads
    yield "open files and sockets", before.files, after.files


def _more(found: Standing, like: Standing) -> bool:
    counted = [(_SPARE.get(what, 0), was, now) for what, was, now in _counted(like, found)]
    return any(now > was + spare for spare, was, now in counted if was is not None and now is not None)


def _load(found: Standing) -> str:
    return f"{found.analyses}, {found.leases}, {found.rows}"


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:g}"
