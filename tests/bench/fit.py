"""How long somebody waits for an answer while a probe is fitted on the same model.

A fit has two halves that hold others up in different ways: it reads states in forwards of low priority,
then trains encoders between forwards. The impatient one is measured in each, and on the idle daemon.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from itertools import islice
from pathlib import Path

from lensd_client import AsyncClient, LensdError, Progress
from tests.bench.contenders import UNIT
from tests.bench.load.drive import Bounds, closed_loop
from tests.bench.load.mix import Lengths
from tests.bench.load.plan import Profile, Shot, shots
from tests.bench.load.wire import Wire
from tests.bench.report import Check, Ratio, Report, pairwise, scaled
from tests.e2e.daemon import Daemon, running_daemon

ROUNDS, IMPATIENT = 3, 40
MOST_WAIT = 3.0
MODEL = "smollm2-135m"
READING, TRAINING = "reading states", "training probe"
#: The corpus that comes with the plugin, and more epochs than anybody waits for.
_FIT = {"corpus": "facts", "epochs": 100_000}
_IMPATIENT = Profile(mix={f"dla:{UNIT}": 1.0}, lengths=Lengths(14, 14), seed=23)


def measure(share: float) -> Report:
    """Rounds of: idle, while a fit reads, while it trains."""
    with tempfile.TemporaryDirectory() as state, running_daemon(Path(state)) as daemon:
        found = asyncio.run(_Rounds(daemon, share).run())
    return Report(
        name="fit",
        setting=f"SmolLM2-135M, vsa-fit of {_FIT['corpus']} with defaults; impatient: one client, DLA by {UNIT}, 14 tokens",
        ratios=[
            Ratio("p50 of the impatient while a fit reads", "p50 when idle", pairwise(found.reading, found.idle), at_most=MOST_WAIT),
            Ratio("p50 of the impatient while it trains", "p50 when idle", pairwise(found.training, found.idle), at_most=MOST_WAIT),
        ],
        checks=[
            Check("every analysis completed", f"{found.lost} did not", not found.lost),
            Check("fits were in the half measured until its end", f"{found.late} were not", not found.late),
        ],
        figures=[
            (f"p50 of the impatient, {when}", ", ".join(f"{s * 1e3:.0f}" for s in values) + " ms")
            for when, values in (("idle", found.idle), ("reading", found.reading), ("training", found.training))
        ],
    )  # fmt: skip


class _Fit:
    """A fit under way, and the stage it was last heard of in."""

    def __init__(self) -> None:
        self.stage = ""
        self._changed = asyncio.Condition()

    async def follow(self, client: AsyncClient, seed: int) -> None:
        """Until it is cancelled or fails."""
        run = client.analyze("vsa-fit", model=MODEL, params={**_FIT, "artifact": "bench", "seed": seed})
        try:
            async for event in run:
                # Of a fit whose rows wait for their turn the server itself says so.
                if isinstance(event, Progress) and event.stage != "queued":
                    async with self._changed:
                        self.stage = event.stage.partition(":")[0]
                        self._changed.notify_all()
        finally:
            run.cancel()

    async def reached(self, stage: str) -> None:
        """Returns in the midst of ``stage``."""
        async with self._changed:
            await self._changed.wait_for(lambda: self.stage == stage)


class _Rounds:
    def __init__(self, daemon: Daemon, share: float) -> None:
        self._daemon = daemon
        self._rounds, self._asked = scaled(ROUNDS, share), scaled(IMPATIENT, share, 5)
        self._shots: Iterator[Shot] = shots(_IMPATIENT, "impatient")
        self.idle: list[float] = []
        self.reading: list[float] = []
        self.training: list[float] = []
        self.lost = self.late = 0

    async def run(self) -> "_Rounds":
        self._wire = Wire(self._daemon.grpc)
        await self._p50()
        for number in range(self._rounds):
            self.idle.append(await self._p50())
            async with self._fit(number) as fit:
                for stage, found in ((READING, self.reading), (TRAINING, self.training)):
                    await fit.reached(stage)
                    found.append(await self._p50())
                    self.late += fit.stage != stage
        await self._wire.close()
        return self

    @asynccontextmanager
    async def _fit(self, seed: int) -> AsyncIterator[_Fit]:
        """A fit that begins anew, since no other round had its seed, and is cancelled at the end."""
        fit = _Fit()
        async with AsyncClient(self._daemon.grpc) as client:
            following = asyncio.create_task(fit.follow(client, seed))
            try:
                yield fit
            finally:
                following.cancel()
                with suppress(asyncio.CancelledError, LensdError):
                    await following

    async def _p50(self) -> float:
        tally = await closed_loop(self._wire, islice(self._shots, self._asked), 1, Bounds(self._asked))
        self.lost += tally.ended - tally.completed
        return tally.latency.at(0.5)
