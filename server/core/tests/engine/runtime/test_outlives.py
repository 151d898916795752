"""The device thread outlives whatever its callers, their code and their tokens do, and so do their neighbours."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lensd_api import (
    Capture,
    DeviceLost,
    Internal,
    InvalidRequest,
    PluginFailure,
    Reduce,
    Row,
    Sampling,
    Site,
    Stack,
)
from lensd_server.engine import memory
from lensd_server.engine.anatomy import continuing
from lensd_server.engine.batching import batcher
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.device import Device
from lensd_server.engine.generation import Generation
from lensd_server.engine.handle import BlockingHandle, prepare
from lensd_server.engine.observers import Observers
from server.core.tests.engine.runtime.conftest import RESIDUAL

#: In a model with 128 positions: one written on from here, and what stands beside it, which is longer.
NEAR_THE_END, BESIDE = tuple(range(3, 123)), tuple(range(10, 50))


def leave(stack: Stack, view: Any) -> Sequence[Any]:
    raise SystemExit(1)


def test_tokens_may_come_in_any_sequence(bench: Any) -> None:
    given: Any = [3, 4, torch.tensor(5)]
    row = Row(given, attention_mask=torch.ones(3, dtype=torch.int64), position_ids=[0, 1, 2])  # pyright: ignore
    prepared = prepare(row, RESIDUAL, bench.loaded.card.anatomy)
    assert (prepared.tokens, prepared.attention_mask, prepared.position_ids) == (
        (3, 4, 5),
        (1, 1, 1),
        (0, 1, 2),
    )
    for wrong in ([3.5], ["3"]):
        with pytest.raises(InvalidRequest, match="whole numbers"):
            prepare(Row(wrong), RESIDUAL, bench.loaded.card.anatomy)  # pyright: ignore


def test_a_reduce_that_exits_fails_alone(bench: Any) -> None:
    first = bench.occupy()
    capture = Capture(RESIDUAL.sites, layers=(), reduce=Reduce(leave))
    leaving, beside = bench.submit([3, 4], capture=capture), bench.submit([6, 7, 8])
    bench.forwards.release()
    assert bench.outcome(first).error is None
    assert isinstance(bench.outcome(leaving).error, PluginFailure)
    assert bench.outcome(beside).error is None
    assert bench.outcome(bench.submit([9])).error is None


def test_a_batch_that_cannot_be_chosen_fails_those_who_wait_and_nobody_after_them(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = bench.occupy()
    ticket = Ticket()
    waiting = bench.submit([3, 4], ticket=ticket)

    def broken(now: float) -> Any:
        monkeypatch.undo()
        raise SystemExit(1)

    monkeypatch.setattr(bench.batcher._queue, "take", broken)
    bench.forwards.release()
    assert bench.outcome(first).error is None
    assert isinstance(bench.outcome(waiting).error, Internal)
    assert bench.batcher.waiting() == (0, 0)
    assert bench.outcome(bench.submit([9])).error is None


def test_an_observer_that_exits_is_survived() -> None:
    class Leaving:
        def evicted(self, model: str, reason: str) -> None:
            raise SystemExit(1)

    Observers(loads=[Leaving()]).evicted("a", "idle")  # pyright: ignore


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama"])
def test_padding_stays_within_the_context(
    make_bench: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Beside a row near the end of the context a longer one is read: no forward may fail and be run again."""
    bench = make_bench(model=name)
    card = bench.loaded.card
    alone = bench.outcome(bench.submit(BESIDE)).results[0][Site.FINAL_RESIDUAL]
    events: list[Any] = []
    failed: list[Any] = []
    narrow = bench.batcher._execution._narrow
    monkeypatch.setattr(
        bench.batcher._execution, "_narrow", lambda *how, **more: (failed.append(how), narrow(*how, **more))
    )
    handle = BlockingHandle(card, bench.batcher, Ticket())
    generation: Generation = handle._generation(
        [Row(NEAR_THE_END)], Sampling(max_new_tokens=3, stop_tokens=()), None, events.append
    )
    beside: list[Any] = []

    def join(rows: list[tuple[int, ...]]) -> None:
        if len(beside) < 2 and (1,) in {(len(row),) for row in rows} and not bench.batcher.waiting()[0]:
            beside.append(bench.submit(BESIDE))

    bench.forwards.fault = join  # a caller who comes while the row is written on
    with generation:
        bench.batcher.settle()
    found = [bench.outcome(future) for future in beside]
    assert events[-1] is None
    together = [batch for batch in bench.forwards.batches if sorted(map(len, batch)) == [1, len(BESIDE)]]
    assert together, "nobody was beside the row"
    assert not failed
    for call in found:
        limit = 1e-5 * float(alone.abs().max())
        torch.testing.assert_close(call.results[0][Site.FINAL_RESIDUAL], alone, rtol=0, atol=limit)


def test_tokens_that_have_no_text_end_their_generation_alone(bench: Any) -> None:
    handle = BlockingHandle(bench.loaded.card, bench.batcher, Ticket())

    def unknown(tokens: Sequence[int]) -> str:
        raise IndexError("piece id is out of range")

    handle.decode = unknown
    for sampling in (Sampling(max_new_tokens=1, stop_tokens=()), Sampling(stop_texts=("x",), stop_tokens=())):
        first = bench.occupy()
        beside = bench.submit([6, 7, 8])
        events = handle.generate([Row((3, 4, 5))], sampling)
        bench.forwards.release()
        with pytest.raises(Internal, match="error id"):
            list(events)
        assert bench.outcome(first).error is None
        assert bench.outcome(beside).error is None


@pytest.mark.parametrize(("failures", "continues"), [(1, True), (2, False)])
def test_memory_that_runs_out_once_does_not_end_reading_on(
    bench: Any, monkeypatch: pytest.MonkeyPatch, failures: int, continues: bool
) -> None:
    real, tries = continuing._follow, 0

    def follow(*args: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries <= failures:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*args)

    monkeypatch.setattr(continuing, "_follow", follow)
    assert bool(bench.batcher._execution.continuation) is continues


def test_a_device_lost_while_reading_on_is_tried_lets_nobody_wait(
    make_bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def follow(*args: Any) -> Any:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    bench = make_bench()
    monkeypatch.setattr(continuing, "_follow", follow)
    first = bench.occupy()
    settled = threading.Thread(target=bench.batcher.settle, daemon=True)
    settled.start()
    events = BlockingHandle(bench.loaded.card, bench.batcher, Ticket()).generate([Row((3, 4, 5))])
    told: list[Any] = []

    def read() -> None:
        with pytest.raises(DeviceLost) as lost:
            list(events)
        told.append(lost.value)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    while not bench.batcher.waiting()[0]:
        threading.Event().wait(0.01)
    bench.forwards.release()
    bench.outcome(first)
    for thread in (reader, settled):
        thread.join(60)
        assert not thread.is_alive()
    assert told
    with pytest.raises(DeviceLost):
        bench.submit([9])


def test_who_writes_into_its_logits_changes_nobody_elses(bench: Any) -> None:
    row = (3, 4, 5, 6)
    logits = frozenset({Site.LOGITS})
    plain = Capture(logits, positions="all", layers=(), reduce=Reduce(keep))
    alone = bench.outcome(bench.submit(row, capture=plain)).results[0]
    first = bench.occupy()
    writing = bench.submit(row, capture=Capture(logits, positions="all", layers=(), reduce=Reduce(overwrite)))
    reading = bench.submit(row, capture=plain)
    bench.forwards.release()
    bench.outcome(first)
    bench.outcome(writing)
    found = bench.outcome(reading).results[0]
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-5 * float(alone.abs().max()))


def test_memory_is_tidied_up_once_after_rows_have_run(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tidied = threading.Semaphore(0)
    monkeypatch.setattr(batcher, "IDLE_S", 0.02)
    monkeypatch.setattr(Device, "tidy", lambda device: tidied.release())
    assert not tidied.acquire(timeout=0.2), "nothing has run"
    for _ in range(2):
        bench.outcome(bench.submit([3, 4]))
        assert tidied.acquire(timeout=60)
        assert not tidied.acquire(timeout=0.2), "nothing has run since"


def test_free_memory_goes_back_to_the_system() -> None:
    memory.trim()  # whatever earlier tests left
    small = [bytearray(1000) for _ in range(100_000)]
    last = bytearray(1000)  # keeps the heap from shrinking by itself
    full = memory.process_bytes()
    del small
    memory.trim()
    assert memory.process_bytes() < full - 50 * 2**20
    assert last is not None


def keep(stack: Stack, view: Any) -> Sequence[Any]:
    return [stack.values[Site.LOGITS].clone()]


def overwrite(stack: Stack, view: Any) -> Sequence[Any]:
    stack.values[Site.LOGITS].zero_()
    return [None]
