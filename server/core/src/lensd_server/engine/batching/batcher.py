"""One queue and one device thread per resident model.

While a forward runs, rows from all live analyses gather; the next batch takes what is there. An
idle model runs a single row at once; rows that wait already may wait a little longer for callers that
have just been answered (:mod:`.gathering`). A row that is read in several steps waits for its next one
like any other.

Invariant: every submitted call settles exactly once, whatever happens to its neighbours.
"""

import threading
import time
from collections.abc import Callable, Sequence

import structlog

from lensd_api import (
    CallerShareTaken,
    DeadlineExceeded,
    DeviceLost,
    Draining,
    LensdError,
    QueueFull,
    TooLarge,
    Unavailable,
)
from lensd_server.engine.anatomy.capture import run_batch
from lensd_server.engine.anatomy.inspect import InspectedModel
from lensd_server.engine.batching.call import ForwardCall, QueuedRow
from lensd_server.engine.batching.execution import BatchExecution, RunBatch
from lensd_server.engine.batching.gathering import Gathering
from lensd_server.engine.batching.pace import Pace
from lensd_server.engine.batching.queue import BatchLimits, RowQueue, is_interactive
from lensd_server.engine.batching.sharing import share
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.device import Device
from lensd_server.engine.device_faults import device_lost
from lensd_server.engine.events import caller_of
from lensd_server.engine.faults import internal_failure
from lensd_server.engine.observers import BatchRecord, Observers

__all__ = ["BatchLimits", "Batcher"]

#: After so long without rows memory is tidied up.
IDLE_S = 1.0

_log = structlog.get_logger("lensd.engine")


class Batcher:
    """Runs the rows of all analyses of one model. Safe to use from any thread.

    Called on the device thread, once: ``when_lost`` when the device is beyond repair, ``when_damaged`` when a
    reduce has written into the weights, after which nothing runs on them any more.
    """

    def __init__(
        self,
        name: str,
        model: InspectedModel,
        device: Device,
        limits: BatchLimits,
        *,
        observers: Observers | None = None,
        when_lost: Callable[[DeviceLost], None] = lambda _: None,
        when_damaged: Callable[[Unavailable], None] = lambda _: None,
        run: RunBatch = run_batch,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name, self._model, self._device, self._limits = name, model, device, limits
        self._when_lost = when_lost
        self._observers = observers or Observers()
        self._clock = clock
        self._changed = threading.Condition()
        self._gathering = Gathering(limits.longest_wait_s)
        expect = _expecting(self._gathering, self._changed, clock)
        self._execution = BatchExecution(name, model, device, run, clock, when_damaged, expect)
        self._queue = RowQueue(limits)
        self._running: list[QueuedRow] = []
        #: Rows and tokens that observers know to wait.
        self._reported = (0, 0)
        self._closed = self._lost = self._untidy = False
        self._pace = Pace(limits.price)
        self._thread = threading.Thread(target=self._serve, name=f"lensd-device-{name}", daemon=True)
        self._thread.start()

    def submit(self, *calls: ForwardCall) -> None:
        """Queues all rows of ``calls``, which are of one ticket, or none. Raises QueueFull, CallerShareTaken,
        TooLarge, Draining, DeviceLost, or what the ticket says."""
        ticket, rows = calls[0].ticket, sum(len(call.rows) for call in calls)
        if self._device.turn.computes_here:
            raise RuntimeError(
                "a forward would wait for the very compute that asks for it: ask outside of it"
            )
        ticket.check()
        most = self._limits.max_own_rows
        if rows > most:
            raise TooLarge(
                f"{rows} rows in one forward; this server queues at most {most} of one caller: "
                "send them in several calls"
            )
        now = self._clock()
        with self._changed:
            if self._lost:
                raise device_lost(self._device.name)
            if self._closed:
                raise Draining(f"model {self._name} is being unloaded", retry_after_s=1.0)
            self._check_room(rows, ticket)
            for call in calls:
                call.submitted = now
                self._queue.add(call)
            self._gathering.arrived(rows, now)
            self._changed.notify_all()
        self._report_queue()

    def check_room(self) -> None:
        """Raises QueueFull while so many rows wait that those of another analysis would hardly find room."""
        with self._changed:
            if len(self._queue) > self._limits.max_rows * 3 // 4:
                raise self._full(self._limits.max_rows // 4)

    def withdraw(self, call: ForwardCall, error: LensdError) -> None:
        """Takes the rows of ``call`` out of the queue at once and settles it with ``error``.

        Rows in the running forward cannot be stopped; their values are dropped.
        """
        with self._changed:
            dropped = self._queue.drop(call)
        call.fail(error)
        if dropped:
            self._report_queue()

    @property
    def reducing(self) -> tuple[Ticket, float] | None:
        """The analysis whose own code is on the device thread now, and since when."""
        return self._execution.reducing

    def waiting(self) -> tuple[int, int]:
        """Rows and tokens in the queue, the running batch not counted."""
        with self._changed:
            return len(self._queue), self._queue.tokens

    @property
    def max_tokens(self) -> int:
        """Padded tokens of a batch, at most."""
        return self._limits.max_tokens

    @property
    def kept_bytes(self) -> int:
        """What rows that are read in several steps keep on the device between batches."""
        with self._changed:
            return self._queue.kept_bytes(self._running)

    def elapsed(self, call: ForwardCall) -> float:
        """Seconds since ``call`` was submitted."""
        return self._clock() - call.submitted

    def seconds(self, tokens: int) -> float:
        """What ``tokens`` take in full batches, as batches have gone lately."""
        with self._changed:
            return self._pace.seconds(tokens, self._limits.max_tokens)

    def seconds_ahead(self, ticket: Ticket) -> float:
        """What is certain to run before a first row of ``ticket``, if it were queued now."""
        with self._changed:
            return self._pace.seconds(self._queue.tokens_ahead(ticket), self._limits.max_tokens)

    def standing(self, ticket: Ticket) -> tuple[int, int]:
        """Rows of one analysis that wait, and that run."""
        with self._changed:
            running = sum(row.call.ticket is ticket for row in self._running)
            return self._queue.pending(ticket), running

    def settle(self) -> None:
        """Blocks until nothing waits and the device is free."""
        with self._changed:
            while self._queue or self._running:
                self._changed.wait()

    def close(self) -> None:
        """Ends the device thread after the batch it is in; what still waits fails with Draining."""
        with self._changed:
            self._closed = True
            left = self._queue.clear()
            self._changed.notify_all()
        self._report_queue()
        self._fail_unloaded(left)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _fail_unloaded(self, rows: Sequence[QueuedRow]) -> None:
        for row in rows:
            row.call.fail(Draining(f"model {self._name} was unloaded", retry_after_s=1.0))

    # The device thread

    def _serve(self) -> None:
        with self._device.entered():
            while self._wait_for_rows():
                try:
                    self._run_next()
                except DeviceLost as lost:
                    self._lose(lost, self._running)
                except BaseException as error:
                    self._begin_anew(error)

    def _run_next(self) -> None:
        # The turn comes first, so that whoever arrives while it is waited for joins the batch.
        with self._device.turn:
            rows = self._take()
            if rows:
                self._untidy = True
                self._run_guarded(rows)
        for ticket in {row.call.ticket for row in rows}:
            ticket.leave_device()
        self._put_back([row for row in rows if not row.answered and row.wanted])

    def _begin_anew(self, error: BaseException) -> None:
        """A bug of ours, outside of any batch: whoever waits is told, and the thread goes on with an empty queue."""
        with self._changed:
            rows = [*self._running, *self._queue.clear()]
            self._running = []
            self._changed.notify_all()
        self._report_queue()
        for ticket in {row.call.ticket for row in rows}:
            ticket.leave_device()
        self._fail_internally(rows, error, "choosing a batch")

    def _put_back(self, rows: Sequence[QueuedRow]) -> None:
        """Queues what has been read only in part; nothing runs any more."""
        with self._changed:
            self._running = []
            closed = self._closed
            if not closed:
                self._queue.readmit(rows)
            self._changed.notify_all()
        if closed:
            self._fail_unloaded(rows)
        elif rows:
            self._report_queue()

    def _wait_for_rows(self) -> bool:
        """False once closed."""
        while self._is_idle():
            self._device.tidy()
            self._untidy = False
        with self._changed:
            return len(self._queue) > 0

    def _is_idle(self) -> bool:
        """Waits for rows; whether none came for a while after others had run.

        The one place where a batch waits for more rows than there are."""
        with self._changed:
            while not self._closed:
                patience = IDLE_S if self._untidy else None
                if len(self._queue):
                    patience = self._gathering.patience(self._clock(), urgent=self._queue.urgent)
                    if not patience or self._queue.tokens >= self._limits.max_tokens:
                        return False
                if not self._changed.wait(patience) and self._untidy and not len(self._queue):
                    return True
            return False

    def _take(self) -> list[QueuedRow]:
        """Takes the next batch out of the queue, and with it whatever nobody waits for any more."""
        while True:
            with self._changed:
                if self._queue.learned or not self._queue.wants_steps:
                    batch = self._queue.take(self._clock())
                    self._running = batch.rows
                    for ticket in {row.call.ticket for row in batch.rows}:
                        ticket.enter_device()
                    break
            self._learn()
        for call in batch.late:
            call.fail(DeadlineExceeded("the time allowed for this analysis passed while it was waiting"))
        self._report_queue()
        return batch.rows

    def _learn(self) -> None:
        """Finds out whether rows can be read in steps, once that would help."""
        found = self._execution.continuation
        if not found:
            _log.warning("rows are always read at once", model=self._name, problem=found.problem)
        with self._changed:
            self._queue.learn(found)

    def _run_guarded(self, rows: list[QueuedRow]) -> None:
        try:
            self._run_and_report(rows)
        except DeviceLost as lost:
            self._lose(lost, rows)
        except BaseException as error:
            # A bug of ours must not end the thread: everybody else would wait for ever.
            self._fail_internally(rows, error, "running a batch")

    def _fail_internally(self, rows: Sequence[QueuedRow], error: BaseException, doing: str) -> None:
        for call in {id(row.call): row.call for row in rows}.values():
            call.fail(internal_failure(error, doing, request_id=call.ticket.request_id))

    def _lose(self, lost: DeviceLost, rows: Sequence[QueuedRow]) -> None:
        """Nothing runs on this device any more: fails what runs and waits, and whatever comes."""
        _log.error("device lost", model=self._name, device=self._device.name, exc_info=lost.__cause__)
        with self._changed:
            self._closed = self._lost = True
            left = self._queue.clear()
            self._changed.notify_all()
        self._report_queue()
        for call in {id(row.call): row.call for row in (*rows, *left)}.values():
            call.fail(device_lost(self._device.name))
        self._when_lost(lost)

    def _run_and_report(self, rows: list[QueuedRow]) -> None:
        lanes = share([row.step() for row in rows])
        lengths = [rows[lane[0]].length for lane in lanes]
        padded_tokens = max(lengths) * len(lengths)
        # The same row again is no beginning: one of a lane's rows has to go on after it.
        begun = [lane for lane in lanes if len(lane) > 1 and any(rows[i].length < rows[i].left for i in lane)]
        prefix_tokens = sum(rows[lane[0]].length for lane in begun)
        reused_tokens = sum((len(lane) - 1) * rows[lane[0]].length for lane in begun)
        started = self._clock()
        # The wait of a row that is read in steps is told once.
        traced = tuple(
            (row.call.ticket.span, started - row.since if row.past is None else 0.0)
            for row in rows
            if row.call.ticket.span is not None
        )
        self._execution.run(rows)
        seconds = self._clock() - started
        with self._changed:
            self._pace.ran(padded_tokens, seconds)
            reused_tokens += self._queue.lent_tokens
            self._queue.lent_tokens = 0
        self._observers.batch_ran(
            BatchRecord(
                self._name,
                rows=len(lengths),
                tokens=sum(lengths),
                padded_tokens=padded_tokens,
                seconds=seconds,
                prefix_tokens=prefix_tokens,
                reused_tokens=reused_tokens,
                traced=traced,
            )
        )

    def _check_room(self, rows: int, ticket: Ticket) -> None:
        own, share = self._queue.of_caller(ticket), self._limits.max_own_rows
        if own + rows > share:
            raise CallerShareTaken(
                caller=caller_of(ticket.identity, ticket.peer) or "this analysis",
                limit=share,
                unit="waiting rows",
                retry_after_s=self._until_free(own + rows - share),
            )
        if len(self._queue) + rows > self._limits.max_rows:
            raise self._full(rows)

    def _full(self, rows: int) -> QueueFull:
        """For ``rows`` that found no room."""
        waiting, limit = len(self._queue), self._limits.max_rows
        seconds = self._until_free(waiting + rows - limit)
        return QueueFull(
            f"{waiting} rows wait for model {self._name} (limit {limit}); try again in {seconds:.1f} s",
            metadata={"model": self._name, "limit": str(limit)},
            retry_after_s=seconds,
        )

    def _until_free(self, rows: int) -> float:
        """Seconds until ``rows`` of those that wait are done, at the measured pace."""
        tokens = self._queue.tokens * rows // max(1, len(self._queue))
        return min(60.0, max(0.1, self._pace.seconds(tokens, self._limits.max_tokens)))

    def _report_queue(self) -> None:
        with self._changed:
            now, before = (len(self._queue), self._queue.tokens), self._reported
            self._reported = now
        if now != before:
            self._observers.queue_changed(self._name, now[0] - before[0], now[1] - before[1])


def _expecting(
    gathering: Gathering, lock: threading.Condition, clock: Callable[[], float]
) -> Callable[[Sequence[QueuedRow]], None]:
    """Tells ``gathering`` of rows that have been read and are answered next.

    Not a method of the batcher: the execution would hold what holds it, and a model that is freed would stay
    in memory until the garbage of the whole process is collected.
    """

    def expect(rows: Sequence[QueuedRow]) -> None:
        # Where rows go on, whoever comes joins their next step without anybody waiting.
        goes_on = any(row.take or row.call.grows for row in rows)
        interactive = sum(map(is_interactive, rows))
        with lock:
            gathering.answers(0 if goes_on else interactive or len(rows), clock(), urgent=interactive > 0)

    return expect
