"""One queue and one device thread per resident model.

While a forward runs, rows from all live analyses gather; the next batch takes what is there. An
idle model runs a single row at once: nothing ever waits on purpose. Invariant: every submitted
call settles exactly once, whatever happens to its neighbours.
"""

import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lensd_api import DeadlineExceeded, Draining, LensdError, QueueFull, Site, Stack, TooLarge
from lensd_server.engine.anatomy.capture import GatherGroup, run_batch
from lensd_server.engine.anatomy.inspect import InspectedModel
from lensd_server.engine.batching.batch import captured_bytes, choose_rows, group_rows, pad, split_stack
from lensd_server.engine.batching.call import ForwardCall, QueuedRow
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.device import Device, is_out_of_memory, out_of_memory
from lensd_server.engine.events import Priority
from lensd_server.engine.faults import internal_failure, plugin_failure
from lensd_server.engine.observers import BatchRecord, Observers

#: A row of low priority that has waited this long counts as urgent, so that it is served at all.
PATIENCE_S = 5.0

RunBatch = Callable[..., list[dict[Site, Tensor]]]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """``max_tokens``: padded tokens a batch may hold (a longer row runs alone). ``worth``: padding
    one saved forward pays for, in tokens. ``max_rows``: rows that may wait."""

    max_tokens: int
    worth: float
    max_rows: int = 4096


class Batcher:
    """Runs the rows of all analyses of one model. Safe to use from any thread."""

    def __init__(
        self,
        name: str,
        model: InspectedModel,
        device: Device,
        limits: BatchLimits,
        *,
        observers: Observers | None = None,
        run: RunBatch = run_batch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._model, self._device, self._limits = name, model, device, limits
        self._observers = observers or Observers()
        self._forward_pass = run
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: list[QueuedRow] = []
        self._queued_tokens = 0
        self._running: list[QueuedRow] = []
        self._closed = False
        self._row_s = 0.0  # seconds a row takes, smoothed
        self._thread = threading.Thread(target=self._serve, name=f"lensd-device-{name}", daemon=True)
        self._thread.start()

    def submit(self, call: ForwardCall) -> None:
        """Queues all rows of ``call``, or none. Raises QueueFull, TooLarge, Draining, or what the
        ticket says."""
        call.ticket.check()
        if len(call.rows) > self._limits.max_rows:
            raise TooLarge(
                f"{len(call.rows)} rows in one forward; this server queues at most {self._limits.max_rows}: "
                "send them in several calls"
            )
        call.submitted = self._clock()
        with self._changed:
            if self._closed:
                raise Draining(f"model {self._name} is being unloaded", retry_after_s=1.0)
            if len(self._queue) + len(call.rows) > self._limits.max_rows:
                raise self._full()
            self._queue += [QueuedRow(call, i, call.submitted) for i in range(len(call.rows))]
            self._queued_tokens += sum(len(row.tokens) for row in call.rows)
            self._changed.notify_all()
        self._report_queue()

    def withdraw(self, call: ForwardCall, error: LensdError) -> None:
        """Takes the rows of ``call`` out of the queue at once and settles it with ``error``.

        Rows in the running forward cannot be stopped; their values are dropped.
        """
        with self._changed:
            before = len(self._queue)
            self._keep([row for row in self._queue if row.call is not call])
            dropped = before - len(self._queue)
            running = any(row.call is call for row in self._running)
        call.fail(error)
        if dropped:
            self._report_queue()
        if not running:
            self._report_cancelled({call.ticket})

    def waiting(self) -> tuple[int, int]:
        """Rows and tokens in the queue, the running batch not counted."""
        with self._changed:
            return len(self._queue), self._queued_tokens

    def elapsed(self, call: ForwardCall) -> float:
        """Seconds since ``call`` was submitted."""
        return self._clock() - call.submitted

    def pending(self, ticket: Ticket) -> int:
        """Rows of one analysis that wait or run."""
        with self._changed:
            return sum(row.call.ticket is ticket for row in (*self._queue, *self._running))

    def settle(self) -> None:
        """Blocks until nothing waits and the device is free."""
        with self._changed:
            while self._queue or self._running:
                self._changed.wait()

    def close(self) -> None:
        """Ends the device thread after the batch it is in; what still waits fails with Draining."""
        with self._changed:
            self._closed = True
            left = self._queue
            self._keep([])
            self._changed.notify_all()
        for row in left:
            row.call.fail(Draining(f"model {self._name} was unloaded", retry_after_s=1.0))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # The device thread

    def _serve(self) -> None:
        with self._device.entered():
            while self._wait_for_rows():
                # The turn comes first, so that whoever arrives while it is waited for joins the batch.
                with self._device.turn:
                    rows = self._take()
                    if rows:
                        self._run_guarded(rows)
                with self._changed:
                    self._running = []
                    self._changed.notify_all()
                self._report_cancelled({row.call.ticket for row in rows})

    def _wait_for_rows(self) -> bool:
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            return bool(self._queue)

    def _take(self) -> list[QueuedRow]:
        """Takes the next batch out of the queue, and with it whatever nobody waits for any more."""
        now = self._clock()
        with self._changed:
            live = [r for r in self._queue if not (r.call.done or r.call.ticket.expired(now))]
            late = [r.call for r in self._queue if not r.call.done and r.call.ticket.expired(now)]
            chosen: list[int] = []
            if live:
                urgent = [
                    r.call.ticket.priority is Priority.INTERACTIVE or now - r.since > PATIENCE_S for r in live
                ]
                lengths = [r.length for r in live]
                chosen = choose_rows(lengths, urgent, self._limits.max_tokens, self._limits.worth)
            self._running = [live[i] for i in chosen]
            taken = set(chosen)
            self._keep([r for i, r in enumerate(live) if i not in taken])
            batch = self._running
        for call in late:
            call.fail(DeadlineExceeded("the time allowed for this analysis passed while it was waiting"))
        self._report_queue()
        return batch

    def _run_guarded(self, rows: list[QueuedRow]) -> None:
        try:
            self._run_and_report(rows)
        except Exception as error:
            # A bug of ours must not end the thread: everybody else would wait for ever.
            for call in {id(row.call): row.call for row in rows}.values():
                call.fail(internal_failure(error, "running a batch", request_id=call.ticket.request_id))

    def _run_and_report(self, rows: list[QueuedRow]) -> None:
        started = self._clock()
        self._execute(rows)
        seconds = self._clock() - started
        per_row = seconds / len(rows)
        self._row_s = per_row if self._row_s == 0.0 else 0.8 * self._row_s + 0.2 * per_row
        lengths = [row.length for row in rows]
        self._observers.batch_ran(
            BatchRecord(self._name, len(rows), sum(lengths), max(lengths) * len(rows), seconds)
        )

    def _execute(self, rows: Sequence[QueuedRow]) -> None:
        """Runs ``rows`` together; whatever fails is narrowed down to the call whose fault it is."""
        rows = [row for row in rows if not row.call.done]
        if not rows:
            return
        started = self._clock()
        fault: Exception | None = None
        exhausted = False
        settled: list[tuple[list[QueuedRow], list[Any]]] = []
        fetched: list[list[Any]] = []
        failed: list[tuple[list[QueuedRow], Exception]] = []
        try:
            with torch.inference_mode():
                for group, stack in self._forward(rows):
                    members = [rows[i] for i in group.rows]
                    try:
                        settled.append((members, self._reduce(members, stack)))
                    except Exception as error:  # an analyzer's own code
                        failed.append((members, error))
            fetched = self._device.fetch([values for _, values in settled])
        except Exception as error:  # the model's own code, or the device
            fault, exhausted = error, is_out_of_memory(error)
        if fault is not None:
            self._narrow(rows, fault, exhausted=exhausted)
            return
        self._account(rows, self._clock() - started)
        for (members, _), values in zip(settled, fetched, strict=True):
            for row, value in zip(members, values, strict=True):
                row.call.put(row.index, value)
        for members, error in failed:
            self._blame(members, error, alone=len(rows) == 1)

    def _forward(self, rows: Sequence[QueuedRow]) -> list[tuple[GatherGroup, Stack]]:
        inputs = pad([row.row for row in rows])
        groups = group_rows([row.row for row in rows], [row.call.key for row in rows])
        put = self._device.put
        captured = self._forward_pass(
            self._model,
            put(inputs.input_ids),
            inputs.attention_mask,  # read on the host; only special rows need it on the device
            None if inputs.position_ids is None else put(inputs.position_ids),
            inputs.lengths,
            groups,
        )
        for group, values in zip(groups, captured, strict=True):
            share = captured_bytes(values) // len(group.rows)
            own: dict[Ticket, int] = {}
            for i in group.rows:
                own[rows[i].call.ticket] = own.get(rows[i].call.ticket, 0) + share
            for ticket, held in own.items():
                ticket.usage.peak_capture_bytes = max(ticket.usage.peak_capture_bytes, held)
        return [
            (
                group,
                Stack(
                    values=values,
                    args=[rows[i].call.args for i in group.rows],
                    positions=list(group.positions),
                    tokens=[rows[i].row.tokens for i in group.rows],
                    layers=group.layers,
                ),
            )
            for group, values in zip(groups, captured, strict=True)
        ]

    def _reduce(self, members: Sequence[QueuedRow], stack: Stack) -> list[Any]:
        reduce = members[0].call.reduce
        if reduce is None:
            return list(split_stack(stack))
        values = list(reduce(stack, self._model.view))
        if len(values) != len(members):
            name = getattr(reduce, "__qualname__", repr(reduce))
            raise TypeError(f"{name} must return one value a row: {len(members)} rows, {len(values)} values")
        return values

    def _narrow(self, rows: Sequence[QueuedRow], fault: Exception, *, exhausted: bool) -> None:
        """A forward failed as a whole: try its halves, so that only the row that is to blame fails."""
        if exhausted:
            # The traceback's frames hold the very tensors that did not fit.
            traceback.clear_frames(fault.__traceback__)
            self._device.release()
        if len(rows) > 1:
            middle = len(rows) // 2
            self._execute(rows[:middle])
            self._execute(rows[middle:])
            return
        call = rows[0].call
        if exhausted:
            call.fail(out_of_memory(self._device.name, 1, rows[0].length))
        elif isinstance(fault, LensdError):  # the model takes no position ids, for instance
            call.fail(fault)
        else:
            call.fail(
                internal_failure(
                    fault, f"the forward pass of model {self._name}", request_id=call.ticket.request_id
                )
            )

    def _blame(self, members: Sequence[QueuedRow], error: Exception, *, alone: bool) -> None:
        """A reduce failed: fail the call it belongs to, which needs another try if there are several."""
        if is_out_of_memory(error):
            if alone:
                members[0].call.fail(out_of_memory(self._device.name, 1, members[0].length))
            elif len(members) == 1:
                self._device.release()
                self._execute(members)
            else:
                self._narrow(members, error, exhausted=True)
            return
        calls = {id(row.call): row.call for row in members}
        if len(calls) > 1:
            for call in calls.values():
                self._execute([row for row in members if row.call is call])
            return
        (call,) = calls.values()
        if isinstance(error, LensdError):
            call.fail(error)
        else:
            ticket = call.ticket
            call.fail(plugin_failure(error, analyzer=ticket.analyzer, request_id=ticket.request_id))

    def _account(self, rows: Sequence[QueuedRow], seconds: float) -> None:
        for call in {id(row.call): row.call for row in rows}.values():
            call.forward_s += seconds
        for ticket in {row.call.ticket for row in rows}:
            own = [row for row in rows if row.call.ticket is ticket]
            ticket.usage.forward_s += seconds
            ticket.usage.rows += len(own)
            ticket.usage.tokens += sum(row.length for row in own)
            ticket.usage.largest_batch = max(ticket.usage.largest_batch, len(rows))

    def _keep(self, rows: list[QueuedRow]) -> None:
        self._queue = rows
        self._queued_tokens = sum(row.length for row in rows)

    def _full(self) -> QueueFull:
        seconds = min(60.0, max(0.1, len(self._queue) * self._row_s))
        return QueueFull(
            f"{len(self._queue)} rows wait for model {self._name} (limit {self._limits.max_rows}); "
            f"try again in {seconds:.1f} s",
            metadata={"model": self._name, "limit": str(self._limits.max_rows)},
            retry_after_s=seconds,
        )

    def _report_queue(self) -> None:
        rows, tokens = self.waiting()
        self._observers.queue_changed(self._name, rows, tokens)

    def _report_cancelled(self, tickets: set[Ticket]) -> None:
        now = time.monotonic()
        for ticket in tickets:
            if ticket.cancelled_at is not None:
                self._observers.cancel_took(self._name, now - ticket.cancelled_at)
