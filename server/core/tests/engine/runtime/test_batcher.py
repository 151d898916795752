"""The queue and the device thread, with forwards held and broken on purpose."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from lensd_api import (
    AnalysisError,
    CallerShareTaken,
    Cancelled,
    Capture,
    DeadlineExceeded,
    DeviceOutOfMemory,
    Draining,
    Internal,
    ModelView,
    PluginFailure,
    QueueFull,
    Reduce,
    Site,
    Stack,
    TooLarge,
    Unavailable,
)
from lensd_server.engine.batching.price import Price
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.events import Priority
from lensd_server.engine.observers import BatchRecord, Observers

SITES = frozenset({Site.FINAL_RESIDUAL})


def norms(stack: Stack, view: ModelView) -> Sequence[float]:
    return [float(stack.values[Site.FINAL_RESIDUAL][stack.slice_of(i)].norm()) for i in range(len(stack))]


def touchy(stack: Stack, view: ModelView) -> Sequence[float]:
    for arg in stack.args:
        if arg is not None:
            raise arg
    return norms(stack, view)


def forgetful(stack: Stack, view: ModelView) -> Sequence[float]:
    return norms(stack, view)[:-1]


def touching(fault: Exception | None) -> Capture[float]:
    return Capture(SITES, reduce=Reduce(touchy, fault))


def test_an_idle_model_runs_a_single_row_at_once(bench: Any) -> None:
    call = bench.outcome(bench.submit([3, 4, 5]))
    assert bench.forwards.batches == [[(3, 4, 5)]]
    assert call.results[0][Site.FINAL_RESIDUAL].shape == (1, 64)


def test_rows_that_gather_during_a_forward_run_together(bench: Any) -> None:
    first = bench.occupy()
    later = [bench.submit([i, 7]) for i in range(10, 15)]
    bench.forwards.release()
    for future in (first, *later):
        assert bench.outcome(future).error is None
    assert [len(batch) for batch in bench.forwards.batches] == [1, 5]


def test_rows_of_different_reduces_share_a_forward(bench: Any) -> None:
    bench.occupy()
    plain = bench.submit([8, 9])
    reduced = bench.submit([8, 9], capture=Capture(SITES, reduce=Reduce(norms)))
    bench.forwards.release()
    vector = bench.outcome(plain).results[0][Site.FINAL_RESIDUAL]
    assert bench.outcome(reduced).results[0] == pytest.approx(float(vector.norm()), rel=1e-6)
    assert len(bench.forwards.batches) == 2


def test_a_cancelled_row_leaves_the_queue_at_once_and_never_runs(bench: Any) -> None:
    bench.occupy()
    ticket = Ticket()
    future = bench.submit([9, 9], [9, 8], ticket=ticket)
    assert bench.batcher.waiting() == (2, 4)
    ticket.cancel()
    assert bench.batcher.waiting() == (0, 0)
    assert isinstance(bench.outcome(future).error, Cancelled)
    bench.forwards.release()
    bench.batcher.settle()
    assert [len(batch) for batch in bench.forwards.batches] == [1]


def test_a_row_cancelled_while_it_runs_settles_without_waiting_for_the_forward(bench: Any) -> None:
    bench.forwards.hold()
    ticket = Ticket()
    future = bench.submit([9, 9], ticket=ticket)
    bench.forwards.wait_until_inside()
    ticket.cancel()
    assert isinstance(bench.outcome(future).error, Cancelled)


def test_a_deadline_that_passes_in_the_queue_costs_no_forward(bench: Any) -> None:
    first = bench.occupy()
    # Passed when the batch is built, though not when it was queued.
    late = Ticket(deadline=time.monotonic() + 3600)
    future = bench.submit([9, 9], ticket=late)
    late.deadline = time.monotonic() - 1
    bench.forwards.release()
    assert isinstance(bench.outcome(future).error, DeadlineExceeded)
    assert bench.outcome(first).error is None
    bench.batcher.settle()
    assert bench.forwards.batches == [[(5,)]]


def test_a_ticket_that_has_expired_queues_nothing(bench: Any) -> None:
    with pytest.raises(DeadlineExceeded):
        bench.submit([1], ticket=Ticket(deadline=time.monotonic() - 1))
    assert bench.batcher.waiting() == (0, 0)


def test_interactive_rows_go_first(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(max_tokens=4)
    bench.occupy()
    patient = bench.submit([1, 1], [2, 2], ticket=Ticket(priority=Priority.BATCH))
    urgent = bench.submit([3, 3], [4, 4])
    bench.forwards.release()
    bench.outcome(patient), bench.outcome(urgent)
    assert bench.forwards.batches[1:] == [[(3, 3), (4, 4)], [(1, 1), (2, 2)]]


def test_a_row_wider_than_the_budget_runs_alone(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(max_tokens=8)
    bench.occupy()
    wide, narrow = bench.submit(range(20, 50)), bench.submit([6])
    bench.forwards.release()
    assert bench.outcome(wide).error is None
    assert bench.outcome(narrow).error is None
    assert [len(batch) for batch in bench.forwards.batches] == [1, 1, 1]


def test_an_exception_in_a_reduce_fails_only_the_call_that_caused_it(bench: Any) -> None:
    bench.occupy()
    good = [bench.submit([i], capture=touching(None)) for i in (3, 4)]
    bad = bench.submit([6], capture=touching(ValueError("secret")), ticket=Ticket(analyzer="touchy"))
    refused = bench.submit([7], capture=touching(AnalysisError("not like this")))
    other = bench.submit([8])
    bench.forwards.release()
    assert [bench.outcome(future).error for future in (*good, other)] == [None, None, None]
    failure = bench.outcome(bad).error
    assert isinstance(failure, PluginFailure)
    assert failure.metadata["analyzer"] == "touchy"
    assert "secret" not in failure.message
    assert isinstance(bench.outcome(refused).error, AnalysisError)


def test_a_reduce_that_loses_a_row_is_the_plugins_failure(bench: Any) -> None:
    call = bench.outcome(bench.submit([1], [2], capture=Capture(SITES, reduce=Reduce(forgetful))))
    assert isinstance(call.error, PluginFailure)


def test_a_trial_of_reading_in_steps_that_raises_leaves_the_device_thread_serving(
    make_bench: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[object] = []

    def fail(structure: object) -> None:
        tried.append(structure)
        raise RuntimeError("boom")

    monkeypatch.setattr("lensd_server.engine.batching.execution.check_continuation", fail)
    bench = make_bench(max_tokens=8)
    for _ in range(2):  # it is tried once a long row has shown that it would help
        assert bench.outcome(bench.submit(range(1, 60))).error is None
    assert bench.outcome(bench.submit([3])).error is None
    assert len(tried) == 1


def writing(stack: Any, model: Any, args: Any = None) -> list[int]:
    """A reduce that writes into the model; the same numbers, for the sake of the other tests."""
    model.unembed[0].mul_(1.0)
    return [0] * len(stack.args)


def test_a_reduce_that_writes_into_the_weights_fails_and_nothing_is_read_from_them_again(bench: Any) -> None:
    bench.occupy()
    good = bench.submit([1], capture=touching(None))
    bad = [
        bench.submit([i], capture=Capture(SITES, reduce=Reduce(writing)), ticket=Ticket(analyzer="vandal"))
        for i in (2, 3)
    ]
    bench.forwards.release()
    assert bench.outcome(good).error is None
    for future in bad:
        assert isinstance(bench.outcome(future).error, PluginFailure)
    refused = bench.outcome(bench.submit([4])).error
    assert isinstance(refused, Unavailable)
    assert (refused.reason, refused.metadata["analyzer"]) == ("MODEL_DAMAGED", "vandal")
    assert refused.retry_after_s is not None, "the model comes back by itself"


def test_out_of_memory_is_narrowed_down_to_the_row_that_does_not_fit(bench: Any) -> None:
    def fault(rows: list[tuple[int, ...]]) -> Exception | None:
        return torch.OutOfMemoryError("too much") if (66,) in rows or len(rows) > 3 else None

    bench.occupy()
    futures = {i: bench.submit([i]) for i in (61, 62, 63, 64, 65, 66, 67)}
    bench.forwards.fault = fault
    bench.forwards.release()
    errors = {i: bench.outcome(future).error for i, future in futures.items()}
    assert isinstance(errors.pop(66), DeviceOutOfMemory)
    assert set(errors.values()) == {None}


def test_out_of_memory_in_a_reduce_is_tried_again_with_fewer_rows(bench: Any) -> None:
    bench.occupy()
    good = bench.submit([3], capture=touching(None))
    bad = bench.submit([4], capture=touching(torch.OutOfMemoryError("too much")))
    bench.forwards.release()
    assert bench.outcome(good).error is None
    assert isinstance(bench.outcome(bad).error, DeviceOutOfMemory)


def test_a_fault_of_the_model_spares_the_rows_that_do_not_cause_it(bench: Any) -> None:
    bench.occupy()
    good, bad = bench.submit([3]), bench.submit([66])
    bench.forwards.fault = lambda rows: RuntimeError("boom") if (66,) in rows else None
    bench.forwards.release()
    assert bench.outcome(good).error is None
    failure = bench.outcome(bad).error
    assert isinstance(failure, Internal)
    assert "boom" not in failure.message


def test_the_thread_survives_every_failure(bench: Any) -> None:
    bench.forwards.fault = lambda rows: RuntimeError("boom")
    assert bench.outcome(bench.submit([3])).error is not None
    bench.forwards.fault = lambda rows: None
    assert bench.outcome(bench.submit([3])).error is None


def test_a_full_queue_refuses_and_says_when_to_try_again(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(max_rows=2)
    bench.occupy()
    bench.submit([1], [2])
    with pytest.raises(QueueFull) as refused:
        bench.submit([3])
    assert refused.value.retry_after_s
    assert bench.batcher.waiting()[0] == 2


def test_one_caller_leaves_room_in_the_queue_for_others(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(max_rows=4, caller_share=0.5)
    bench.occupy()
    here, there = Ticket(peer="ipv4:10.0.0.1:1"), Ticket(peer="ipv4:10.0.0.2:1")
    bench.submit([1], [2], ticket=here)
    with pytest.raises(CallerShareTaken, match=r"10\.0\.0\.1 has used up") as refused:
        bench.submit([3], ticket=here)
    assert refused.value.retry_after_s
    bench.submit([3], [4], ticket=there)
    assert bench.batcher.waiting()[0] == 4


def test_a_newcomer_is_refused_before_the_queue_is_full(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(max_rows=4)
    bench.batcher.check_room()
    bench.occupy()
    bench.submit([1], [2], [3], [4])
    with pytest.raises(QueueFull):
        bench.batcher.check_room()


def test_how_soon_to_try_again_follows_what_batches_took(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(max_rows=2, max_tokens=1, price=Price.linear(0.0, 3.0))
    bench.occupy()
    bench.submit([1], [2])
    with pytest.raises(QueueFull) as refused:
        bench.submit([3])
    assert refused.value.retry_after_s == pytest.approx(3.0)


def test_a_call_larger_than_the_queue_is_told_so(make_bench: Callable[..., Any]) -> None:
    with pytest.raises(TooLarge):
        make_bench(max_rows=2).submit([1], [2], [3])


def test_closing_fails_what_waits_and_refuses_what_comes(bench: Any) -> None:
    running = bench.occupy()
    waiting = bench.submit([3])
    bench.forwards.release()
    bench.batcher.close()
    assert bench.outcome(running).error is None
    # The device thread may have taken it before the queue was closed.
    assert isinstance(bench.outcome(waiting).error, Draining | None)
    with pytest.raises(Draining):
        bench.submit([4])


def test_usage_counts_rows_tokens_and_the_largest_batch(bench: Any) -> None:
    bench.occupy()
    mine, other = Ticket(), Ticket()
    futures = [bench.submit([1, 2], [3], ticket=mine), bench.submit([4, 5, 6], ticket=other)]
    bench.forwards.release()
    for future in futures:
        bench.outcome(future)
    assert (mine.usage.rows, mine.usage.tokens, mine.usage.largest_batch) == (2, 3, 3)
    assert (other.usage.rows, other.usage.tokens, other.usage.largest_batch) == (1, 3, 3)
    assert mine.usage.forward_s > 0
    assert mine.usage.peak_capture_bytes == 2 * 64 * 4


class Noting:
    def __init__(self) -> None:
        self.batches: list[BatchRecord] = []

    def batch_ran(self, batch: BatchRecord) -> None:
        self.batches.append(batch)

    def queue_changed(self, model: str, rows: int, tokens: int) -> None:
        raise RuntimeError("a metric that breaks")

    def cancel_took(self, model: str, seconds: float) -> None: ...


def test_observers_are_told_and_a_broken_one_harms_nobody(make_bench: Callable[..., Any]) -> None:
    noting = Noting()
    bench = make_bench(observers=Observers(batches=[noting]))
    bench.occupy()
    ticket = Ticket()
    futures = [bench.submit([1, 2, 3]), bench.submit([4], ticket=Ticket()), bench.submit([4], ticket=ticket)]
    ticket.cancel()
    bench.forwards.release()
    assert bench.outcome(futures[0]).error is None
    assert bench.outcome(futures[1]).error is None
    bench.batcher.settle()
    assert noting.batches[1].rows == 2
    assert noting.batches[1].tokens == 4
    assert noting.batches[1].padded_tokens == 6


class Waiting:
    """Adds up what comes to wait and leaves."""

    def __init__(self) -> None:
        self.rows = self.tokens = self.most = 0

    def batch_ran(self, batch: BatchRecord) -> None: ...

    def queue_changed(self, model: str, rows: int, tokens: int) -> None:
        self.rows, self.tokens = self.rows + rows, self.tokens + tokens
        self.most = max(self.most, self.rows)

    def cancel_took(self, model: str, seconds: float) -> None: ...


@pytest.mark.parametrize("unloaded", [False, True])
def test_what_waits_adds_up_to_nothing_however_it_leaves_the_queue(
    make_bench: Callable[..., Any], unloaded: bool
) -> None:
    waiting = Waiting()
    bench = make_bench(observers=Observers(batches=[waiting]))
    running, ticket = bench.occupy(), Ticket()
    left = bench.submit([1, 2, 3])
    bench.submit([4, 5], [6], ticket=ticket)
    assert (waiting.rows, waiting.tokens) == (3, 6)
    ticket.cancel()
    assert (waiting.rows, waiting.tokens) == (1, 3)
    if unloaded:
        closing = threading.Thread(target=bench.batcher.close)
        closing.start()
        assert isinstance(bench.outcome(left).error, Draining)
    bench.forwards.release()
    bench.outcome(running)
    bench.batcher.settle()
    if unloaded:
        closing.join(60)
    assert (waiting.rows, waiting.tokens, waiting.most) == (0, 0, 3)


def test_pending_rows_are_counted_by_analysis(bench: Any) -> None:
    bench.occupy()
    ticket = Ticket()
    bench.submit([1], [2], ticket=ticket)
    bench.submit([3])
    assert bench.batcher.standing(ticket) == (2, 0)
