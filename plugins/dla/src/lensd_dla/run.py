"""Runs the forwards of an analysis: as many at a time as memory allows, results in order."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lensd_api import Capture, ModelHandle, Reduce, Row, Site, Unit, patiently
from lensd_dla.items import Item
from lensd_dla.params import DlaParams
from lensd_dla.plan import CAPTURE_BUDGET_BYTES, Part
from lensd_dla.readout import ReadOut
from lensd_dla.reduce import Attribute
from lensd_dla.rows import PartReading, as_arrays


@dataclass(frozen=True, slots=True)
class Group:
    """Positions of an item that are captured by the same forward pass."""

    item: Item
    positions: tuple[int, ...]
    size_bytes: int


async def read_group(
    group: Group, parts: Sequence[Part], read_out: ReadOut, params: DlaParams, model: ModelHandle
) -> list[PartReading]:
    """All parts of a group. The first decides the target for the others."""
    row = Row(group.item.tokens)
    readings: list[PartReading] = []
    for part in parts:
        reduce = Reduce(attribute(part, params, model.anatomy.vocab_size), read_out)
        capture = Capture(part.sites, positions=group.positions, layers=part.layers, reduce=reduce)
        (reading,) = await patiently(model.forward, [row], capture)
        readings.append(as_arrays(part, reading))
        if part.first and Site.RAW_LOGITS in part.sites:
            # Two forwards may break a tie differently: settle the top prediction once.
            targets = readings[0].get("target").astype(np.int64)
            read_out = replace(read_out, target=tuple(targets.tolist()))
    return readings


async def in_order(
    groups: Sequence[Group], parts: Sequence[Part], read_out: ReadOut, params: DlaParams, model: ModelHandle
) -> AsyncGenerator[tuple[Group, "asyncio.Task[list[PartReading]]"]]:
    """Finished tasks in the order of ``groups``; captures in flight stay within the budget."""
    waiting = deque(groups)
    running: deque[tuple[Group, asyncio.Task[list[PartReading]]]] = deque()
    in_flight = 0
    try:
        while waiting or running:
            while waiting and (not running or in_flight + waiting[0].size_bytes <= CAPTURE_BUDGET_BYTES):
                group = waiting.popleft()
                in_flight += group.size_bytes
                running.append(
                    (group, asyncio.ensure_future(read_group(group, parts, read_out, params, model)))
                )
            group, task = running[0]  # stays among the running, to be cancelled with them
            await asyncio.wait([task])
            running.popleft()
            in_flight -= group.size_bytes
            yield group, task
    finally:
        # The caller is gone, or a group failed: what still runs must not outlive the analysis.
        for _, task in running:
            task.cancel()
        await asyncio.gather(*(task for _, task in running), return_exceptions=True)


def attribute(part: Part, params: DlaParams, vocab_size: int) -> Attribute:
    """What to make of the captures of ``part``; equal for requests that can share a batch."""
    ranked = part.unit in (Unit.NEURON, Unit.SOURCE)
    return Attribute(
        unit=part.unit,
        first=part.first,
        top_k=params.top_k if ranked else 0,
        direct_effect=params.direct_effect,
        lens_top_k=min(params.lens_top_k, vocab_size) if params.lens else 0,
    )
