"""A flood of batch-priority analyses of all lengths, and somebody who waits for an answer meanwhile.

Four questions of one load: how much of the batches is padding, how long the impatient one waits beside
an idle daemon, whether low priority costs a flood that is alone anything, and what it achieves over
forwards of the same prompts in batches made by hand, by length.
"""

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice, takewhile
from pathlib import Path

from lensd_server.engine.batching.queue import ABOUT_S
from tests.bench.contenders import UNIT, BareForward, converted_weights
from tests.bench.load.drive import Bounds, closed_loop
from tests.bench.load.mix import Lengths
from tests.bench.load.plan import Profile, Shot, shots
from tests.bench.load.scrape import Scrape
from tests.bench.load.tally import End, Tally
from tests.bench.load.wire import Wire
from tests.bench.report import Check, Ratio, Report, pairwise, scaled
from tests.e2e.daemon import Daemon, running_daemon

CLIENTS, ROUNDS, IMPATIENT, FLOOD = 32, 3, 40, 96
LENGTHS = Lengths(8, 512)
MOST_PADDED, MOST_WAIT = 1.2, 3.0
#: Padded tokens of a batch made by hand: about what saturates the device.
BY_HAND = {"cpu": 512, "cuda": 8192}
_FLOOD = Profile(mix={f"dla:{UNIT}": 1.0}, lengths=LENGTHS, batch=1.0, seed=21)
_IMPATIENT = Profile(mix={f"dla:{UNIT}": 1.0}, lengths=Lengths(14, 14), seed=22)


def measure(share: float) -> Report:
    """Rounds of: idle, the flood alone, the flood with somebody impatient."""
    bare = BareForward(converted_weights())
    with tempfile.TemporaryDirectory() as state, running_daemon(Path(state)) as daemon:
        found = asyncio.run(_Rounds(daemon, bare, share).run())
    return Report(
        name="fairness",
        setting=f"SmolLM2-135M, DLA by {UNIT}; flood: {CLIENTS} clients of batch priority, "
        f"{LENGTHS.low} to {LENGTHS.high} tokens; impatient: one client, 14 tokens",
        ratios=found.ratios(),
        checks=[Check("every analysis completed", f"{found.lost} did not", not found.lost)],
        figures=found.figures(),
    )


class _Rounds:
    def __init__(self, daemon: Daemon, bare: BareForward, share: float) -> None:
        self._daemon, self._bare = daemon, bare
        self._rounds = scaled(ROUNDS, share)
        self._impatient = scaled(IMPATIENT, share, 5)
        self._a_flood = scaled(FLOOD, share, CLIENTS)
        self.idle: list[float] = []
        self.waited: list[float] = []
        self.alone: list[float] = []
        self.urgent: list[float] = []
        self.by_hand: list[float] = []
        self.padded: list[float] = []
        self.lost = 0

    async def run(self) -> "_Rounds":
        wire = Wire(self._daemon.grpc)
        flood, impatient = shots(_FLOOD, "flood"), shots(_IMPATIENT, "impatient")
        await self._ask(wire, list(islice(impatient, 3)), 1)
        await self._ask(wire, list(islice(flood, CLIENTS)), CLIENTS)
        for _ in range(self._rounds):
            # Whoever is impatient is remembered for a while, and the flood's batches kept short for him.
            await asyncio.sleep(1.1 * ABOUT_S)
            await self._flood_alone(wire, list(islice(flood, self._a_flood)))
            idle = await self._ask(wire, list(islice(impatient, self._impatient)), 1)
            self.idle.append(idle.latency.at(0.5))
            asked = list(islice(impatient, self._impatient))
            self.waited.append(await self._flood_and_impatient(wire, flood, asked))
        await wire.close()
        return self

    def ratios(self) -> list[Ratio]:
        return [
            Ratio("p50 of the impatient in the flood", "p50 when idle", pairwise(self.waited, self.idle), at_most=MOST_WAIT),
            Ratio("tokens with padding", "tokens without, mean over batches", self.padded, at_most=MOST_PADDED),
            Ratio("tokens a second of the flood alone", "the same sent as interactive", pairwise(self.alone, self.urgent), at_least=0.95),
            Ratio("tokens a second of the flood alone", f"hand-made batches of {BY_HAND[self._bare.device.type]} tokens, by length", pairwise(self.alone, self.by_hand)),
        ]  # fmt: skip

    def figures(self) -> list[tuple[str, str]]:
        return [
            ("p50 of the impatient, idle", ", ".join(f"{s * 1e3:.0f}" for s in self.idle) + " ms"),
            ("p50 of the impatient, in the flood", ", ".join(f"{s * 1e3:.0f}" for s in self.waited) + " ms"),
        ]

    async def _ask(self, wire: Wire, asked: Sequence[Shot], clients: int) -> Tally:
        tally = await closed_loop(wire, iter(asked), clients, Bounds(len(asked)))
        self.lost += tally.ended - tally.completed
        return tally

    async def _flood_alone(self, wire: Wire, asked: Sequence[Shot]) -> None:
        prompts = [shot.ask.params["prompt"] for shot in asked]
        tokens = sum(map(self._bare.tokens, prompts))
        before = await asyncio.to_thread(Scrape.of, self._daemon.metrics)
        self.alone.append(tokens / (await self._ask(wire, asked, CLIENTS)).seconds)
        added = (await asyncio.to_thread(Scrape.of, self._daemon.metrics)).since(before)
        self.padded.append(added.histogram("lensd_batch_padding_ratio").mean)
        urgent = [replace(shot, request_id=f"urgent-{shot.request_id}", batch=False) for shot in asked]
        self.urgent.append(tokens / (await self._ask(wire, urgent, CLIENTS)).seconds)
        start = time.perf_counter()
        for batch in _by_length(prompts, self._bare):
            self._bare.run_padded(batch)
        self.by_hand.append(tokens / (time.perf_counter() - start))

    async def _flood_and_impatient(self, wire: Wire, flood: Iterator[Shot], asked: Sequence[Shot]) -> float:
        """p50 of the impatient while the flood runs, from when it runs at full strength."""
        over, full, ends = asyncio.Event(), asyncio.Event(), list[End]()

        def note(end: End) -> None:
            ends.append(end)
            if len(ends) >= CLIENTS // 2:
                full.set()

        some = takewhile(lambda _: not over.is_set(), flood)
        flooding = asyncio.create_task(closed_loop(wire, some, CLIENTS, Bounds(100_000), each=note))
        await full.wait()
        tally = await self._ask(wire, asked, 1)
        over.set()
        flooded = await flooding
        self.lost += flooded.ended - flooded.completed
        return tally.latency.at(0.5)


def _by_length(prompts: Sequence[str], bare: BareForward) -> list[list[str]]:
    """Batches in order of length, each as large as the daemon's budget lets one be."""
    budget, batches = BY_HAND[bare.device.type], [[]]
    for prompt in sorted(prompts, key=bare.tokens):
        if batches[-1] and (len(batches[-1]) + 1) * bare.tokens(prompt) > budget:
            batches.append([])
        batches[-1].append(prompt)
    return batches
