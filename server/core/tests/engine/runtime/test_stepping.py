"""Long rows are read in parts where others wait, within the memory there is, and give what they give whole."""

import gc
from typing import Any

import pytest
import torch

from lensd_api import Capture, Site
from lensd_server.engine.anatomy.past import Past, Slab
from lensd_server.engine.batching.batch import PreparedRow
from lensd_server.engine.batching.call import ForwardCall, QueuedRow
from lensd_server.engine.batching.price import Price
from lensd_server.engine.batching.stepping import SPARE, fitting, kept_bytes, limit_steps, make_room, slots
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.events import Priority
from lensd_server.tiny_models import TINY

LONG = tuple(range(10, 110))


def waiting(length: int, *sites: Site, past: Past | None = None) -> QueuedRow:
    call = ForwardCall(
        ticket=Ticket(),
        rows=[PreparedRow(tuple(range(length)), (length - 1,))],
        sites=frozenset(sites),
        layers=(),
        reduce=None,
        args=None,
        settled=lambda call: None,
    )
    return QueuedRow(call, 0, 0.0, past=past)


def past_of(slab: Slab, lane: int) -> Past:
    return Past(slab, lane, 0, slab.filled)


def slab(lanes: int = 1, filled: int = 10) -> Slab:
    made = Slab(lanes, filled, filled)
    made.keys[0] = torch.zeros(lanes, 1, filled, 4)
    return made


def assert_same(found: Any, expected: Any) -> None:
    for site in expected.values:
        limit = 1e-5 * float(expected[site].abs().max())
        torch.testing.assert_close(found[site], expected[site], rtol=0, atol=limit)


def lengths(bench: Any) -> list[list[int]]:
    """Of each batch after the first the lengths of its lanes."""
    return [[len(lane) for lane in batch] for batch in bench.forwards.batches[1:]]


def slabs() -> int:
    gc.collect()
    return sum(type(found) is Slab for found in gc.get_objects())


def test_parts_are_even_and_only_made_of_what_is_much_longer() -> None:
    rows = [waiting(100), waiting(47), waiting(100, Site.ATTENTION)]
    limit_steps(rows, [[0], [1], [2]], 32)
    assert [row.length for row in rows] == [25, 47, 100]


def test_slots_count_what_is_laid_out_and_nothing_else() -> None:
    rows = [waiting(30), waiting(20, past=past_of(slab(), 0))]
    assert slots(rows, [[0]]) == 0
    assert slots(rows, [[0], [1]]) == 2 * (10 + 30)
    assert fitting(rows, [[0], [1]], 79) == [[0]]
    assert fitting(rows, [[1]], 1) == [[1]]


def test_slots_count_the_spare_ones_of_rows_that_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ForwardCall, "grows", property(lambda call: len(call.rows[0].tokens) == 20))
    assert slots([waiting(30), waiting(20)], [[0], [1]]) == 2 * (30 + SPARE)


def test_what_rows_share_is_counted_once_and_forgotten_together() -> None:
    shared, own = slab(), slab()
    rows = [waiting(20, past=past_of(shared, 0)), waiting(20, past=past_of(own, 0)), waiting(20)]
    rows.append(waiting(30, past=rows[0].past))
    assert kept_bytes(rows) == shared.nbytes + own.nbytes
    assert make_room(rows, 1) == [rows[0], rows[3]]
    assert [row.done for row in rows] == [0, 10, 0, 0]
    assert make_room(rows, 10**9) == [rows[1]]


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_row_longer_than_a_batch_is_read_in_parts_and_is_the_same(make_bench: Any, name: str) -> None:
    quiet = make_bench(model=name)
    bench = make_bench(model=name, max_tokens=30, price=Price.linear(4.0, 1.0))
    capture = Capture(frozenset({Site.BLOCK_OUT, Site.HEADS, Site.LOGITS}), positions="all")
    bench.outcome(bench.submit([5]))
    for _ in range(2):  # for the first time it is only found out that it can be done
        found = bench.outcome(bench.submit(LONG, capture=capture)).results[0]
        assert_same(found, quiet.outcome(quiet.submit(LONG, capture=capture)).results[0])
    assert lengths(bench) == [[100], [25], [25], [25], [25]]


def test_an_idle_model_reads_a_row_that_fits_at_once(make_bench: Any) -> None:
    bench = make_bench(price=Price.linear(4.0, 1.0))
    bench.outcome(bench.submit([5]))
    for _ in range(2):
        bench.outcome(bench.submit(LONG))
    assert lengths(bench) == [[100], [100]]


def test_interactive_rows_go_between_the_parts_of_a_long_one(make_bench: Any) -> None:
    bench = make_bench(max_tokens=60, price=Price.linear(4.0, 1.0))
    bench.outcome(bench.submit(LONG))  # it is found out
    bench.forwards.wait_until_inside()
    bench.occupy()
    ticket = Ticket(priority=Priority.BATCH)
    long = bench.submit(LONG, ticket=ticket)
    short = bench.submit([7, 8, 9])
    bench.forwards.release()
    for future in (short, long):
        assert bench.outcome(future).error is None
    assert lengths(bench)[1] == [3]
    # While interactive rows are about it is read in the shortest parts.
    parts = [length for batch in lengths(bench)[2:] for length in batch]
    assert sum(parts) == 100
    assert max(parts) <= 16


def test_a_row_that_is_cancelled_between_its_parts_gives_all_back(make_bench: Any) -> None:
    bench = make_bench(max_tokens=30, price=Price.linear(4.0, 1.0))
    bench.outcome(bench.submit([5]))
    bench.outcome(bench.submit(LONG))
    before = slabs()
    bench.occupy()
    ticket = Ticket()
    future = bench.submit(LONG, ticket=ticket)
    bench.forwards.release()
    bench.forwards.wait_until_inside()
    ticket.cancel()
    assert bench.outcome(future).error is not None
    bench.batcher.settle()
    assert bench.batcher.waiting() == (0, 0)
    assert slabs() == before


def test_what_is_kept_between_batches_can_be_seen_while_they_run_and_is_gone_in_the_end(
    make_bench: Any,
) -> None:
    bench = make_bench(max_tokens=30, price=Price.linear(4.0, 1.0))
    bench.outcome(bench.submit([5]))
    bench.outcome(bench.submit(LONG))
    assert bench.batcher.kept_bytes == 0
    kept: list[int] = []
    # Looked at in each forward, from within.
    bench.forwards.fault = lambda rows: kept.append(bench.batcher.kept_bytes)
    bench.outcome(bench.submit(LONG))
    bench.batcher.settle()
    anatomy = bench.loaded.card.anatomy
    token = 2 * anatomy.n_layers * anatomy.n_kv_heads * anatomy.head_dim * 4
    assert kept == [0, 25 * token, 50 * token, 75 * token]
    assert bench.batcher.kept_bytes == 0


@pytest.mark.parametrize("room", [30, 60, 110, 190])
def test_without_room_for_what_has_been_read_long_rows_still_come_to_their_end(
    make_bench: Any, room: int
) -> None:
    quiet = make_bench()
    bench = make_bench(max_tokens=30, price=Price.linear(4.0, 1.0), max_cache_bytes=room * 768)
    bench.outcome(bench.submit([5]))
    bench.outcome(bench.submit(LONG))
    bench.occupy()
    texts = [LONG, tuple(reversed(LONG)), (*LONG[:40], *LONG[:30]), (*LONG[:40], *LONG[:20])]
    futures = [bench.submit(text, ticket=Ticket(priority=Priority.BATCH)) for text in texts]
    bench.forwards.release()
    for text, future in zip(texts, futures, strict=True):
        assert_same(bench.outcome(future).results[0], quiet.outcome(quiet.submit(text)).results[0])
