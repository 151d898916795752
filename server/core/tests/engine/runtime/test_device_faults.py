"""A device that runs out of memory fails what did not fit; one that breaks fails everything at once."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from lensd_api import (
    Capture,
    DeviceLost,
    DeviceOutOfMemory,
    LensdError,
    ModelView,
    Reduce,
    Site,
    Stack,
)
from lensd_server.engine.device import Device
from lensd_server.engine.device_faults import is_beyond_repair
from lensd_server.engine.events import ModelState
from server.core.tests.engine.runtime.bounded import Bounded

EXHAUSTED = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
ASSERT = "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"


def exhausted(most_rows: int) -> Callable[[list[tuple[int, ...]]], Exception | None]:
    """Memory for ``most_rows`` rows and no more."""
    return lambda rows: torch.OutOfMemoryError("CUDA out of memory") if len(rows) > most_rows else None


@pytest.fixture
def released(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each time that memory is given back to a device."""
    noted: list[str] = []
    monkeypatch.setattr(Device, "release", lambda self: noted.append(self.name))
    return noted


def test_a_batch_that_does_not_fit_runs_in_smaller_ones(bench: Any, released: list[str]) -> None:
    held = bench.occupy()
    futures = [bench.submit([token, token + 1]) for token in range(2, 8)]
    bench.forwards.fault = exhausted(2)
    bench.forwards.release()
    bench.outcome(held)
    assert [bench.outcome(future).error for future in futures] == [None] * 6
    assert [len(rows) for rows in bench.forwards.batches] == [1, 6, 3, 1, 2, 3, 1, 2]
    assert released, "the cache is emptied before the next try"


def test_only_the_row_that_never_fits_fails(bench: Any, released: list[str]) -> None:
    def too_long(rows: list[tuple[int, ...]]) -> Exception | None:
        return EXHAUSTED if any(len(row) > 5 for row in rows) else None

    held = bench.occupy()
    futures = [bench.submit(list(range(2, 2 + length))) for length in (2, 9, 3, 4)]
    bench.forwards.fault = too_long
    bench.forwards.release()
    bench.outcome(held)
    errors = [bench.outcome(future).error for future in futures]
    assert [type(error) for error in errors] == [type(None), DeviceOutOfMemory, type(None), type(None)]
    assert errors[1].reason == "DEVICE_OOM"


def test_the_next_request_is_served_after_one_did_not_fit(bench: Any) -> None:
    bench.forwards.fault = exhausted(0)
    assert isinstance(bench.outcome(bench.submit([2, 3])).error, DeviceOutOfMemory)
    bench.forwards.fault = lambda rows: None
    assert bench.outcome(bench.submit([2, 3])).error is None


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("CUDA error: an illegal memory access was encountered"), True),
        (RuntimeError(ASSERT), True),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), True),
        (torch.AcceleratorError("CUDA error: unspecified launch failure"), True),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("CUDA error: invalid argument"), False),
        (RuntimeError("shape mismatch"), False),
        (ValueError(ASSERT), False),
    ],
)
def test_a_broken_context_is_told_from_other_faults(error: Exception, expected: bool) -> None:
    assert is_beyond_repair(error) is expected


def test_a_broken_device_fails_what_runs_and_waits_and_comes(bench: Any) -> None:
    lost: list[DeviceLost] = []
    bench.batcher._when_lost = lost.append
    held = bench.occupy()
    waiting = [bench.submit([token, 3]) for token in range(2, 5)]
    bench.forwards.fault = lambda rows: RuntimeError(ASSERT)
    bench.forwards.release()
    errors = [bench.outcome(future).error for future in (held, *waiting)]
    assert {type(error) for error in errors} == {DeviceLost}
    assert errors[0].retry_after_s
    assert len(bench.forwards.batches) == 1, "nothing is tried again on a broken device"
    with pytest.raises(DeviceLost):
        bench.submit([2, 3])
    bench.batcher._thread.join(60)
    assert len(lost) == 1


async def test_a_model_on_a_broken_device_is_refused_and_the_process_told(make_rig: Any) -> None:
    told: list[str] = []
    rig = make_rig()
    rig.residency._loads._when_lost = told.append
    async with rig.residency.lease("llama"):
        pass
    rig.residency._loads._lose(
        rig.residency._shelf.model("llama").slots[0], DeviceLost("broken", metadata={"device": "cuda:0"})
    )
    assert rig.residency.status("llama").state is ModelState.FAILED
    with pytest.raises(DeviceLost):
        async with rig.residency.lease("llama"):
            pass
    assert told == ["cuda:0 failed under model llama"]


async def test_a_device_that_breaks_during_a_load_is_told_too() -> None:
    bounded = Bounded({"a": 100})
    told: list[str] = []
    bounded.residency._loads._when_lost = told.append
    bounded.loader.faults["a"] = RuntimeError(ASSERT)
    with pytest.raises(DeviceLost):
        await bounded.use("a")
    await asyncio.to_thread(bounded.close)
    assert told == ["cpu failed while model a was loaded"]


class Watched:
    """Notes which captures are still held."""

    def __init__(self) -> None:
        self.seen: list[weakref.ref[torch.Tensor]] = []

    def note(self, stack: Stack) -> torch.Tensor:
        residual = stack.values[Site.FINAL_RESIDUAL]
        self.seen.append(weakref.ref(residual))
        return residual

    @property
    def held(self) -> int:
        return sum(one() is not None for one in self.seen)


@pytest.mark.parametrize(
    "error", [ValueError("no"), LensdError("no"), torch.OutOfMemoryError("CUDA out of memory")]
)
def test_a_reduce_that_fails_leaves_nothing_on_the_device(bench: Any, error: Exception) -> None:
    watched = Watched()

    def failing(stack: Stack, view: ModelView) -> Sequence[Any]:
        watched.note(stack)
        raise error

    gc.collect()
    gc.disable()  # a GPU's memory must not wait for it
    try:
        capture = Capture(frozenset({Site.FINAL_RESIDUAL}), reduce=Reduce(failing))
        calls = [bench.outcome(bench.submit([token, 3], capture=capture)) for token in (4, 5)]
        bench.outcome(bench.submit([9]))
        assert all(call.error is not None for call in calls)
        assert watched.held == 0
    finally:
        gc.enable()


def test_a_forward_that_fails_leaves_nothing_on_the_device(bench: Any) -> None:
    held: list[weakref.ref[torch.Tensor]] = []

    def raising(rows: list[tuple[int, ...]]) -> Exception | None:
        local = torch.zeros(1000)
        held.append(weakref.ref(local))
        raise ValueError

    gc.collect()
    gc.disable()
    try:
        bench.forwards.fault = raising
        call = bench.outcome(bench.submit([4, 5]))
        bench.forwards.fault = lambda rows: None
        bench.outcome(bench.submit([9]))
        assert call.error is not None
        assert [one() for one in held] == [None]
    finally:
        gc.enable()


def test_what_did_not_fit_with_others_has_their_memory_when_it_is_tried_again(bench: Any) -> None:
    watched, held = Watched(), list[int]()

    def large(stack: Stack, view: ModelView) -> Sequence[Any]:
        held.append(watched.held)
        residual = watched.note(stack)
        if len(stack) > 1 or len(held) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [residual[stack.slice_of(row)].clone() for row in range(len(stack))]

    occupied = bench.occupy()
    capture = Capture(frozenset({Site.FINAL_RESIDUAL}), reduce=Reduce(large))
    futures = [bench.submit([token, 3], capture=capture) for token in (4, 5, 6, 7)]
    bench.forwards.release()
    bench.outcome(occupied)
    assert [bench.outcome(future).error for future in futures] == [None] * 4
    assert held == [0] * len(held)
    assert len(held) > 4


def test_while_one_reduce_is_tried_again_what_another_captured_is_not_held(bench: Any) -> None:
    watched, held = Watched(), list[int]()

    def touchy(stack: Stack, view: ModelView) -> Sequence[Any]:
        held.append(watched.held)
        watched.note(stack)
        if len(stack) > 1:
            raise ValueError
        return [1]

    def other(stack: Stack, view: ModelView) -> Sequence[Any]:
        return touchy(stack, view)

    occupied = bench.occupy()
    futures = [
        bench.submit([token, 3], capture=Capture(frozenset({Site.FINAL_RESIDUAL}), reduce=Reduce(reduce)))
        for reduce in (touchy, other)
        for token in (4, 5)
    ]
    bench.forwards.release()
    bench.outcome(occupied)
    assert [bench.outcome(future).error for future in futures] == [None] * 4
    # Both were tried together, then each row alone.
    assert held[0] == 0
    assert held[2:] == [0] * 4
