"""Forwards of many items: bounded in flight, answered in order, nothing left behind."""

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lensd_api import CallerShareTaken, Capture, Exhausted, InvalidRequest, QueueFull, Row, Unit
from lensd_dla import run
from lensd_dla.items import Item
from lensd_dla.params import DlaParams
from lensd_dla.plan import CAPTURE_BUDGET_BYTES, plan_parts
from lensd_dla.reading import Layout, Reading
from lensd_dla.readout import ReadOut
from lensd_dla.run import Group, in_order
from plugins.dla.tests.tiny_card import anatomy

PARAMS = DlaParams.parse({"prompt": "a"})
MODEL = anatomy(frozenset(Unit))
PARTS = plan_parts(PARAMS, MODEL, 10)


class GatedModel:
    """Forwards wait until they are let go; ``running`` says which are under way."""

    anatomy = MODEL

    def __init__(self, refuse: int | None = None, full: Sequence[Exhausted] = ()) -> None:
        self.running: dict[int, asyncio.Event] = {}
        self.cancelled: list[int] = []
        self._refuse, self._full = refuse, list(full)

    async def forward(self, rows: Sequence[Row], capture: Capture[Any]) -> list[Reading]:
        (row,) = rows
        if self._full:
            raise self._full.pop()
        gate = self.running[row.tokens[0]] = asyncio.Event()
        try:
            await gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(row.tokens[0])
            raise
        if row.tokens[0] == self._refuse:
            raise InvalidRequest("refused for the test")
        assert capture.positions != "all"
        values = torch.full((len(capture.positions), 1), float(row.tokens[0]), dtype=torch.float64)
        return [Reading(Layout({"target": ()}), values)]


def groups(*sizes: int) -> list[Group]:
    return [Group(Item(str(i), (i,), (0,)), (0,), size) for i, size in enumerate(sizes)]


async def settle() -> None:
    """Lets every task that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_results_come_in_order_whatever_finishes_first() -> None:
    model = GatedModel()
    found = in_order(groups(1, 1, 1), PARTS, ReadOut(), PARAMS, model)  # type: ignore[arg-type]
    first = asyncio.ensure_future(anext(found))
    await settle()
    assert sorted(model.running) == [0, 1, 2]
    for number in (2, 1, 0):
        model.running[number].set()
    order = [(await first)[0].item.name, *[group.item.name async for group, _ in found]]
    assert order == ["0", "1", "2"]


async def test_captures_in_flight_stay_within_the_budget() -> None:
    model = GatedModel()
    half = CAPTURE_BUDGET_BYTES // 2
    found = in_order(groups(half, half, half), PARTS, ReadOut(), PARAMS, model)  # type: ignore[arg-type]
    first = asyncio.ensure_future(anext(found))
    await settle()
    assert sorted(model.running) == [0, 1]
    model.running[0].set()
    await first
    second = asyncio.ensure_future(anext(found))
    await settle()
    assert sorted(model.running) == [0, 1, 2]
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    await found.aclose()


async def test_one_beyond_the_budget_runs_alone() -> None:
    model = GatedModel()
    found = in_order(groups(2 * CAPTURE_BUDGET_BYTES, 1), PARTS, ReadOut(), PARAMS, model)  # type: ignore[arg-type]
    first = asyncio.ensure_future(anext(found))
    await settle()
    assert list(model.running) == [0]
    model.running[0].set()
    await first
    await found.aclose()


async def test_an_item_waits_for_room_rather_than_be_lost() -> None:
    share = CallerShareTaken(caller="me", limit=1, unit="waiting rows", retry_after_s=0.0)
    model = GatedModel(full=[share, QueueFull("full", retry_after_s=0.0)])
    found = in_order(groups(1), PARTS, ReadOut(), PARAMS, model)  # type: ignore[arg-type]
    first = asyncio.ensure_future(anext(found))
    await settle()
    model.running[0].set()
    group, task = await first
    assert (group.item.name, task.exception()) == ("0", None)
    await found.aclose()


async def test_closing_cancels_what_still_runs() -> None:
    model = GatedModel()
    found = in_order(groups(1, 1, 1), PARTS, ReadOut(), PARAMS, model)  # type: ignore[arg-type]
    first = asyncio.ensure_future(anext(found))
    await settle()
    model.running[0].set()
    await first
    await found.aclose()
    assert model.cancelled == [1, 2]


async def test_cancelling_while_waiting_cancels_every_forward() -> None:
    model = GatedModel()
    found = in_order(groups(1, 1), PARTS, ReadOut(), PARAMS, model)  # type: ignore[arg-type]
    first = asyncio.ensure_future(anext(found))
    await settle()
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await found.aclose()
    assert sorted(model.cancelled) == [0, 1]


async def test_one_that_fails_does_not_end_the_others() -> None:
    model = GatedModel(refuse=1)
    found = in_order(groups(1, 1, 1), PARTS, ReadOut(), PARAMS, model)  # type: ignore[arg-type]
    first = asyncio.ensure_future(anext(found))
    await settle()
    for gate in model.running.values():
        gate.set()
    tasks = [(await first)[1], *[task async for _, task in found]]
    assert [task.exception() is None for task in tasks] == [True, False, True]
    with pytest.raises(InvalidRequest):
        tasks[1].result()


async def test_the_first_part_settles_the_target_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    layers = anatomy(frozenset(Unit), frozenset({Unit.BLOCK}))
    parts = plan_parts(PARAMS, layers, 10)

    class Notes(GatedModel):
        async def forward(self, rows: Sequence[Row], capture: Capture[Any]) -> list[Reading]:
            assert capture.reduce is not None
            seen.append((capture.layers, capture.reduce.args.target))
            return [Reading(Layout({"target": ()}), torch.tensor([[42.0]], dtype=torch.float64))]

    (group,) = groups(1)
    await run.read_group(group, parts, ReadOut(), PARAMS, Notes())  # type: ignore[arg-type]
    assert seen == [((0,), None), ((1,), (42,))]
