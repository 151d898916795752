"""What rows begin with alike is read once, and gives each of them what it would get alone."""

import gc
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lensd_api import Activations, Capture, ModelView, Reduce, Row, Site, Stack
from lensd_server.engine.anatomy.continuing import Continuation
from lensd_server.engine.anatomy.past import Slab
from lensd_server.engine.batching.batch import PreparedRow, Step
from lensd_server.engine.batching.prefixes import SHORTEST, Unread, common, plan_prefixes, unread
from lensd_server.engine.batching.price import Price
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.handle import prepare
from lensd_server.tiny_models import TINY

TEXTS = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=40).map(tuple), min_size=1, max_size=12)
BEGINNING = tuple(range(10, 34))


def total(stack: Stack, view: ModelView) -> Sequence[torch.Tensor]:
    found = stack.values[Site.BLOCK_OUT]
    return [found[stack.slice_of(i)].sum(0) * stack.args[i] for i in range(len(stack))]


def sharing_bench(make_bench: Any, model: str = "llama", **limits: Any) -> Any:
    """One where a forward is cheap, so that sharing pays soon."""
    return make_bench(model=model, **{"price": Price.linear(4.0, 1.0), "max_tokens": 128, **limits})


def slabs() -> int:
    """Slabs of keys and values that are alive."""
    gc.collect()
    return sum(type(found) is Slab for found in gc.get_objects())


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, Activations):
        assert found.positions == expected.positions
        for site in expected.values:
            same(found[site], expected[site])
        return
    torch.testing.assert_close(
        found, expected, rtol=0, atol=1e-5 * max(1e-30, float(expected.double().abs().max()))
    )


@given(TEXTS, st.integers(0, 20))
def test_whatever_is_read_together_is_a_beginning_of_all_that_read_it(
    texts: list[tuple[int, ...]], worth: int
) -> None:
    # Longer than the shortest beginning that is looked for.
    rows = [Unread(0, (7,) * (i % 3) + (1,) * SHORTEST + text) for i, text in enumerate(texts)]
    planned = plan_prefixes(rows, worth)
    groups: dict[tuple[Any, ...], set[tuple[int, ...]]] = {}
    for row, length in zip(rows, planned, strict=True):
        assert length <= len(row.items)
        if length:
            groups.setdefault((length, row.items[:length]), set()).add(row.items)
    for (length, _), members in groups.items():
        assert length * (len(members) - 1) >= 2 * worth
        assert len(members) > 1


@given(st.lists(st.integers(0, 1), max_size=30), st.lists(st.integers(0, 1), max_size=30))
def test_common_counts_the_items_that_are_alike(one: list[int], other: list[int]) -> None:
    length = common(one, other)
    assert one[:length] == other[:length]
    assert length in {len(one), len(other)} or one[length] != other[length]


def test_rows_with_different_pasts_have_no_beginning_in_common() -> None:
    items = tuple(range(20))
    assert plan_prefixes([Unread(1, (*items, 1)), Unread(2, (*items, 2))], 1) == [0, 0]


def test_a_masked_or_moved_token_ends_what_is_common() -> None:
    tokens = tuple(range(30))
    plain = unread(Step.whole(PreparedRow(tokens, ())))
    masked = unread(Step.whole(PreparedRow(tokens, (), attention_mask=(1,) * 20 + (0,) + (1,) * 9)))
    moved = unread(Step.whole(PreparedRow(tokens, (), position_ids=(*range(25), *range(26, 31)))))
    said = unread(Step.whole(PreparedRow(tokens, (), (1,) * 30, tuple(range(30)))))
    assert common(plain.items, masked.items) == 20
    assert common(plain.items, moved.items) == 25
    assert plain == said


@pytest.mark.parametrize("name", sorted(TINY))
def test_rows_that_share_a_beginning_get_what_they_would_get_alone(make_bench: Any, name: str) -> None:
    quiet, bench = make_bench(model=name), sharing_bench(make_bench, name)
    states = frozenset({Site.BLOCK_OUT, Site.HEADS, Site.LOGITS})
    captures: list[Capture[Any]] = [
        Capture(states, positions=(-1,)),
        Capture(states, positions=(-1, 3, 0, 25, 3)),
        Capture(states, positions=(2,)),
        Capture(frozenset({Site.BLOCK_OUT}), positions="all", reduce=Reduce(total, 2.0)),
        Capture(frozenset({Site.BLOCK_OUT}), positions=(-1,), reduce=Reduce(total, 3.0)),
    ]
    endings = [(40,), (41, 42, 43), (41, 42, 44), (45,) * 6, ()]
    rows = [(*BEGINNING, *ending) for ending in endings]
    wanted = [
        (row, c) for row in rows for c in captures if len(row) > 25 or c.positions != captures[1].positions
    ]
    alone = [quiet.outcome(quiet.submit(row, capture=c)).results[0] for row, c in wanted]
    bench.occupy()
    futures = [bench.submit(row, capture=c) for row, c in wanted]
    bench.forwards.release()
    for future, expected in zip(futures, alone, strict=True):
        same(bench.outcome(future).results[0], expected)
    read = bench.forwards.batches[1:]
    assert sum(BEGINNING[0] in lane for batch in read for lane in batch) == 1
    assert max(len(lane) for batch in read for lane in batch) == len(BEGINNING)


def test_beginnings_of_different_callers_are_shared_and_counted(make_bench: Any) -> None:
    bench = sharing_bench(make_bench)
    bench.occupy()
    mine, other = Ticket(), Ticket()
    futures = [bench.submit((*BEGINNING, 40, 41), ticket=mine), bench.submit((*BEGINNING, 50), ticket=other)]
    bench.forwards.release()
    for future in futures:
        assert bench.outcome(future).error is None
    assert (mine.usage.rows, mine.usage.tokens, mine.usage.reused_tokens) == (1, 26, 0)
    assert (other.usage.rows, other.usage.tokens, other.usage.reused_tokens) == (1, 25, 24)
    assert bench.forwards.batches[1:] == [[BEGINNING], [(40, 41), (50,)]]


def test_rows_whose_attention_is_captured_are_read_at_once(make_bench: Any) -> None:
    bench, quiet = sharing_bench(make_bench), make_bench()
    capture = Capture(frozenset({Site.ATTENTION, Site.VALUES}), positions=(0, -1))
    rows = [(*BEGINNING, 40), (*BEGINNING, 50, 51)]
    bench.occupy()
    beside = [bench.submit((*BEGINNING, i)) for i in (60, 61)]
    futures = [bench.submit(row, capture=capture) for row in rows]
    bench.forwards.release()
    for row, future in zip(rows, futures, strict=True):
        same(bench.outcome(future).results[0], quiet.outcome(quiet.submit(row, capture=capture)).results[0])
    for future in beside:
        assert bench.outcome(future).error is None


def test_removed_spans_share_what_comes_before_them(make_bench: Any) -> None:
    bench, quiet = sharing_bench(make_bench), make_bench()
    tokens = (*BEGINNING, *range(50, 60))
    rows = [Row(tokens)]
    for start in (24, 26, 28):
        mask = tuple(int(not start <= i < start + 2) for i in range(len(tokens)))
        rows.append(Row(tokens, mask, tuple(sum(mask[:i]) for i in range(len(tokens)))))
    capture = Capture(frozenset({Site.LOGITS}))
    anatomy = bench.loaded.card.anatomy
    prepared = [prepare(row, capture, anatomy) for row in rows]
    bench.occupy()
    together = bench.submit_prepared(prepared, capture)
    bench.forwards.release()
    for i, found in enumerate(bench.outcome(together).results):
        alone = quiet.outcome(quiet.submit_prepared([prepared[i]], capture)).results[0]
        same(found, alone)
    assert bench.forwards.batches[1] == [BEGINNING]


def test_one_who_is_gone_takes_nothing_from_those_who_share_with_it(make_bench: Any) -> None:
    bench = sharing_bench(make_bench)
    bench.occupy()
    gone = Ticket()
    futures = [bench.submit((*BEGINNING, i, i), ticket=t) for i, t in ((40, gone), (41, None), (42, None))]
    bench.forwards.release()
    bench.forwards.wait_until_inside()  # the beginning
    gone.cancel()
    assert bench.outcome(futures[0]).error is not None
    for future in futures[1:]:
        assert bench.outcome(future).error is None


def test_rows_that_come_while_their_beginning_is_read_go_on_from_it(make_bench: Any) -> None:
    bench, quiet = sharing_bench(make_bench), make_bench()
    bench.occupy()
    futures = [bench.submit((*BEGINNING, i, i)) for i in (40, 41)]
    late, capture = Ticket(), Capture(frozenset({Site.BLOCK_OUT}), positions=(0,))
    came: list[Any] = []

    def come(lanes: list[tuple[int, ...]]) -> None:
        if BEGINNING in lanes and not came:
            came.append(bench.submit((*BEGINNING, 50, 51), ticket=late))
            came.append(bench.submit((*BEGINNING, 52), capture=capture))

    bench.forwards.fault = come  # called inside of each forward
    bench.forwards.release()
    bench.outcome(futures[0])
    other, beginning_asked = came
    rows = [(*BEGINNING, 40, 40), (*BEGINNING, 41, 41), (*BEGINNING, 50, 51)]
    for row, future in zip(rows, [*futures, other], strict=True):
        same(bench.outcome(future).results[0], quiet.outcome(quiet.submit(row)).results[0])
    alone = quiet.outcome(quiet.submit((*BEGINNING, 52), capture=capture)).results[0]
    same(bench.outcome(beginning_asked).results[0], alone)
    assert (late.usage.tokens, late.usage.reused_tokens) == (26, 24)
    # Once for those who share it, once for the one that asks for something of it.
    assert sum(BEGINNING[0] == lane[0] for batch in bench.forwards.batches[1:] for lane in batch) == 2


def test_the_last_of_a_shared_beginning_is_read_at_once(make_bench: Any) -> None:
    bench = sharing_bench(make_bench)
    bench.occupy()
    gone = Ticket()
    futures = [bench.submit((*BEGINNING, i), ticket=t) for i, t in ((40, gone), (41, None))]
    gone.cancel()
    bench.forwards.release()
    assert bench.outcome(futures[1]).error is None
    assert bench.forwards.batches[1:] == [[(*BEGINNING, 41)]]


def test_a_beginning_that_runs_out_of_memory_is_tried_in_smaller_parts(make_bench: Any) -> None:
    bench = sharing_bench(make_bench)
    quiet = make_bench()
    rows = [(*BEGINNING, i, i + 1) for i in range(40, 44)]
    bench.occupy()
    futures = [bench.submit(row) for row in rows]
    bench.forwards.fault = lambda lanes: torch.OutOfMemoryError() if len(lanes) > 1 else None
    bench.forwards.release()
    for row, future in zip(rows, futures, strict=True):
        same(bench.outcome(future).results[0], quiet.outcome(quiet.submit(row)).results[0])


def test_a_model_that_cannot_read_on_shares_nothing(make_bench: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(
        "lensd_server.engine.batching.execution.check_continuation", lambda _: Continuation(problem="no")
    )
    bench = sharing_bench(make_bench)
    bench.occupy()
    rows = [(*BEGINNING, i) for i in range(40, 43)]
    futures = [bench.submit(row) for row in rows]
    bench.forwards.release()
    for future in futures:
        assert bench.outcome(future).error is None
    assert bench.forwards.batches[1:] == [rows]


def test_nothing_is_kept_once_all_rows_are_answered(make_bench: Any) -> None:
    bench = sharing_bench(make_bench)
    before = slabs()
    bench.occupy()
    futures = [bench.submit((*BEGINNING, i)) for i in range(40, 44)]
    bench.forwards.release()
    for future in futures:
        bench.outcome(future)
    bench.batcher.settle()
    assert slabs() == before
    assert bench.batcher.waiting() == (0, 0)
