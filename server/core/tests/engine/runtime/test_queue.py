"""Who is next, by order of events; time is a number that a test sets."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lensd_server.engine.anatomy.continuing import Continuation
from lensd_server.engine.batching.batch import PreparedRow
from lensd_server.engine.batching.call import ForwardCall
from lensd_server.engine.batching.price import Price
from lensd_server.engine.batching.queue import ABOUT_S, TURNS, WINDOW, Batch, BatchLimits, RowQueue
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.events import Priority

LINE = Price.linear(0.066, 0.00163)
LIMITS = BatchLimits(max_tokens=480, price=LINE)
NARROW = BatchLimits(max_tokens=16, price=Price.linear(100.0, 1.0))


def call(ticket: Ticket, rows: int = 1, *, at: float = 0.0, first: int = 0, length: int = 4) -> ForwardCall:
    prepared = [PreparedRow((first + i, *range(1, length)), (length - 1,)) for i in range(rows)]
    made = ForwardCall(ticket, prepared, frozenset(), (), None, None, settled=lambda call: None)
    made.submitted = at
    return made


def low(name: str = "low") -> Ticket:
    return Ticket(name, priority=Priority.BATCH)


def owners(batch: Batch) -> list[str]:
    return [row.call.ticket.request_id for row in batch.rows]


def padded(batch: Batch) -> int:
    return len(batch.rows) * max(row.length for row in batch.rows)


def test_small_requests_ride_along_while_a_large_one_is_served() -> None:
    queue = RowQueue(NARROW)
    queue.add(call(Ticket("large"), 100))
    for number in range(10):
        small = Ticket(f"small-{number}")
        queue.add(call(small, at=1.0 + number, first=1000 + number))
        batch = queue.take(1.0 + number)
        assert owners(batch).count(small.request_id) == 1
        assert owners(batch).count("large") == 3


def test_many_analyses_are_all_served_before_any_is_served_twice() -> None:
    queue = RowQueue(NARROW)
    for number in range(12):
        queue.add(call(Ticket(str(number)), 3, first=100 * number))
    served = [name for _ in range(3) for name in owners(queue.take(0.0))]
    assert sorted(served, key=int) == [str(number) for number in range(12)]


def test_an_analysis_is_served_though_new_ones_keep_coming() -> None:
    queue = RowQueue(NARROW)
    patient = Ticket("patient")
    queue.add(call(patient, 20))
    batches = 0
    while queue.pending(patient) and batches < 200:
        for number in range(4):
            queue.add(call(Ticket(), at=1.0 + batches, first=1000 + 4 * batches + number))
        queue.take(1.0 + batches)
        batches += 1
    assert batches < 200


def test_interactive_rows_go_first() -> None:
    queue = RowQueue(NARROW)
    queue.add(call(low(), 2))
    queue.add(call(Ticket("high"), 4, first=7))
    assert owners(queue.take(0.0)) == ["high"] * 4
    assert owners(queue.take(0.0)) == ["low"] * 2


def test_low_priority_leads_one_batch_in_a_few_however_many_interactive_rows_there_are() -> None:
    queue = RowQueue(NARROW)
    queue.add(call(low(), 2, length=16))
    leaders: list[str] = []
    for number in range(2 * TURNS):
        queue.add(call(Ticket("high"), 2, at=float(number), first=10 * number + 50, length=16))
        leaders += owners(queue.take(float(number)))[:1]
    assert leaders == (["high"] * (TURNS - 1) + ["low"]) * 2


def test_rows_of_low_priority_fill_an_interactive_batch_only_where_that_is_free() -> None:
    queue = RowQueue(LIMITS)
    queue.add(call(low(), 100, length=14))
    queue.add(call(Ticket("high"), first=500, length=14))
    batch = queue.take(0.0)
    assert owners(batch) == ["high"]
    roomy = RowQueue(BatchLimits(4096, Price(((8, 0.005), (1024, 0.005), (2048, 0.009)))))
    roomy.add(call(low(), 50, length=14))
    roomy.add(call(Ticket("high"), first=500, length=14))
    assert len(roomy.take(0.0).rows) == 51


def test_batches_of_low_priority_are_short_while_interactive_rows_are_about() -> None:
    queue = RowQueue(LIMITS)
    queue.add(call(low(), 200, length=14))
    queue.add(call(Ticket("high"), first=500, length=14))
    queue.take(0.0)
    soon, later = queue.take(ABOUT_S - 0.1), queue.take(ABOUT_S + 0.1)
    assert LINE.seconds(padded(soon)) <= 1.25 * LINE.seconds(14)
    assert padded(later) > 480 - 14


def test_a_flood_by_itself_runs_in_full_batches() -> None:
    queue = RowQueue(LIMITS)
    queue.add(call(low(), 200, length=14))
    assert padded(queue.take(0.0)) > 480 - 14


def test_interactive_rows_among_themselves_run_in_full_batches() -> None:
    queue = RowQueue(LIMITS)
    queue.add(call(Ticket(), 200, length=14))
    assert padded(queue.take(0.0)) > 480 - 14


def test_a_long_row_of_low_priority_is_read_in_short_parts_while_interactive_rows_are_about() -> None:
    queue = RowQueue(LIMITS)
    queue.learn(Continuation(bytes_per_token=1))
    queue.add(call(low(), length=400))
    queue.add(call(Ticket("high"), first=7, length=14))
    assert owners(queue.take(0.0)) == ["high"]
    batch = queue.take(0.1)
    assert owners(batch) == ["low"]
    assert LINE.seconds(batch.rows[0].length) <= 1.25 * LINE.seconds(14)


def test_the_median_of_interactive_requests_is_bounded_under_a_flood() -> None:
    """A closed loop of one client beside a flood that never ends, in the price's own time."""
    queue = RowQueue(LIMITS)
    now, begun, waits, number = 0.0, None, [], 0
    idle = LINE.seconds(14)
    while len(waits) < 40:
        while len(queue) < 64:
            number += 1
            queue.add(call(low(str(number)), at=now, first=10_000 + number, length=14))
        batch = queue.take(now)
        now += LINE.seconds(padded(batch))
        if "high" in owners(batch):
            assert begun is not None
            waits.append(now - begun)
            begun = None
        elif begun is None:
            # It comes just after the batch has left, so that it has to wait for all of this one.
            begun = now - LINE.seconds(padded(batch))
            queue.add(call(Ticket("high"), at=begun, first=7, length=14))
    waits.sort()
    assert waits[len(waits) // 2] <= 2.3 * idle


def test_what_nobody_waits_for_is_not_taken() -> None:
    queue = RowQueue(LIMITS)
    gone, late, kept = Ticket("gone"), Ticket("late", deadline=5.0), Ticket("kept")
    for number, ticket in enumerate((gone, late, kept)):
        queue.add(call(ticket, first=100 * number))
    gone.cancel()
    batch = queue.take(6.0)
    assert owners(batch) == ["kept"]
    assert [made.ticket for made in batch.late] == [late]
    assert (len(queue), queue.tokens) == (0, 0)


def test_what_is_ahead_of_a_newcomer_are_the_rows_that_come_first_for_sure() -> None:
    queue = RowQueue(LIMITS)
    newcomer = Ticket(peer="ipv4:10.0.0.9:1")
    assert queue.tokens_ahead(newcomer) == 0
    queue.add(call(Ticket("large", peer="ipv4:10.0.0.1:1"), 50, length=10))
    queue.add(call(Ticket("other", peer="ipv4:10.0.0.2:1"), 2, first=500, length=20))
    queue.add(call(low(), 9, first=900, length=30))
    assert queue.tokens_ahead(newcomer) == 10 + 20
    # Analyses of its own caller take turns with it; second rows of others come later.
    queue.add(call(Ticket("mine", peer="ipv4:10.0.0.9:2"), first=700, length=40))
    assert queue.tokens_ahead(newcomer) == 10 + 20 + 40


def test_equal_rows_ahead_are_waited_for_once() -> None:
    queue = RowQueue(LIMITS)
    for number in range(9):
        queue.add(call(Ticket(str(number)), length=10))
    assert queue.tokens_ahead(Ticket()) == 10


CALLS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(1, 600), st.booleans(), st.integers(0, 20)),
    min_size=1,
    max_size=20,
)


@settings(max_examples=60)
@given(CALLS)
def test_every_row_is_served_exactly_once(calls: list[tuple[int, int, int, bool, int]]) -> None:
    """Rows of any callers, lengths and priorities, arriving while others are served."""
    queue = RowQueue(LIMITS)
    arrivals = sorted(calls, key=lambda c: c[4])
    total = sum(rows for _, rows, *_ in calls)
    served: list[tuple[str, int]] = []
    step = 0
    while len(served) < total:
        while arrivals and arrivals[0][4] <= step:
            host, rows, length, urgent, at = arrivals.pop(0)
            number = len(arrivals)
            priority = Priority.INTERACTIVE if urgent else Priority.BATCH
            ticket = Ticket(str(number), peer=f"ipv4:10.0.0.{host}:1", priority=priority)
            queue.add(call(ticket, rows, at=float(at), first=1000 * number, length=length))
        waiting = len(queue)
        batch = queue.take(float(step))
        assert bool(batch.rows) == bool(waiting), "no batch is empty while rows wait"
        if len(batch.rows) > 1:
            assert padded(batch) <= LIMITS.max_tokens
        served += [(row.call.ticket.request_id, row.index) for row in batch.rows]
        step += 1
    assert len(set(served)) == total
    assert (len(queue), queue.tokens) == (0, 0)


def test_in_a_long_queue_everybody_is_looked_at() -> None:
    queue = RowQueue(BatchLimits(max_tokens=4096, price=Price.linear(1000.0, 1.0)))
    queue.add(call(Ticket("many"), 4000))
    for number in range(100):
        queue.add(call(Ticket(f"few-{number}"), 2, at=1.0, first=10_000 + 10 * number))
    served = owners(queue.take(2.0))
    assert len(served) >= WINDOW // 2
    assert {name for name in served if name != "many"} == {f"few-{number}" for number in range(100)}
