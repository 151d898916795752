"""Batches that wait for callers who were just answered."""

from collections.abc import Callable
from typing import Any

import pytest

from lensd_server.engine.batching.gathering import Gathering
from lensd_server.engine.batching.price import Price
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.events import Priority


def came_back(gathering: Gathering, share: float, *, batches: int = 20) -> None:
    """Batches of ten rows, a ``share`` of whose callers comes back at once."""
    for _ in range(batches):
        gathering.answers(10, 100.0)
        gathering.arrived(round(10 * share), 100.0)


def test_nobody_is_waited_for_before_anybody_was_answered() -> None:
    assert Gathering(1.0).patience(5.0) == 0.0


def test_callers_who_come_back_are_waited_for_until_they_are_there() -> None:
    gathering = Gathering(1.0)
    came_back(gathering, 1.0)
    gathering.answers(3, 200.0)
    assert gathering.patience(200.0) == pytest.approx(1.0, rel=0.01)
    gathering.arrived(2, 200.1)
    assert gathering.patience(200.1) == pytest.approx(0.9, rel=0.02)
    gathering.arrived(1, 200.2)
    assert gathering.patience(200.2) == 0.0


def test_no_wait_is_longer_than_it_may_be() -> None:
    gathering = Gathering(1.0)
    came_back(gathering, 1.0)
    gathering.answers(3, 200.0)
    assert gathering.patience(201.0) == 0.0


def test_callers_who_do_not_come_back_are_soon_not_waited_for() -> None:
    gathering = Gathering(1.0)
    came_back(gathering, 1.0)
    waits = []
    for start in range(300, 320):
        gathering.answers(4, float(start))
        waits.append(gathering.patience(float(start)))
    assert waits == sorted(waits, reverse=True)
    assert waits[6:] == [0.0] * 14


def test_what_comes_back_is_noticed_while_nobody_waits_for_it() -> None:
    gathering = Gathering(1.0)
    came_back(gathering, 0.0)
    gathering.answers(4, 300.0)
    assert gathering.patience(300.0) == 0.0
    came_back(gathering, 1.0, batches=4)
    gathering.answers(4, 400.0)
    assert gathering.patience(400.0) > 0.5


def test_who_comes_later_than_it_pays_does_not_count_as_back() -> None:
    gathering = Gathering(1.0)
    for start in range(300, 320):
        gathering.answers(4, float(start))
        gathering.arrived(4, start + 1.5)
    assert gathering.patience(319.0) == 0.0


def test_a_waiting_row_shares_its_forward_with_a_caller_who_comes_back(
    make_bench: Callable[..., Any],
) -> None:
    bench = make_bench(longest_wait_s=3600.0)
    answered = bench.occupy()
    waiting = bench.submit([8, 9])
    bench.forwards.release()
    bench.outcome(answered)
    back = bench.submit([5, 7])
    assert {bench.outcome(future).error for future in (waiting, back)} == {None}
    assert [len(batch) for batch in bench.forwards.batches] == [1, 2]


def test_callers_of_low_priority_are_waited_for_by_their_like_only() -> None:
    gathering = Gathering(1.0)
    came_back(gathering, 1.0)
    gathering.answers(3, 200.0, urgent=False)
    assert gathering.patience(200.0, urgent=False) > 0.9
    assert gathering.patience(200.0, urgent=True) == 0.0


def test_an_interactive_row_does_not_wait_for_a_caller_of_low_priority(
    make_bench: Callable[..., Any],
) -> None:
    bench = make_bench(longest_wait_s=3600.0)
    bench.forwards.hold()
    answered = bench.submit([5], ticket=Ticket(priority=Priority.BATCH))
    bench.forwards.wait_until_inside()
    waiting = bench.submit([8, 9])
    bench.forwards.release()
    assert {bench.outcome(future).error for future in (answered, waiting)} == {None}
    assert [len(batch) for batch in bench.forwards.batches] == [1, 1]


def test_a_full_batch_waits_for_nobody(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(longest_wait_s=3600.0, max_tokens=4, price=Price.linear(0.0, 1.0))
    answered = bench.occupy()
    waiting = bench.submit([8, 9], [8, 7])
    bench.forwards.release()
    assert {bench.outcome(future).error for future in (answered, waiting)} == {None}
    assert [len(batch) for batch in bench.forwards.batches] == [1, 2]


def test_a_model_can_be_closed_while_a_batch_waits(make_bench: Callable[..., Any]) -> None:
    bench = make_bench(longest_wait_s=3600.0)
    answered = bench.occupy()
    waiting = bench.submit([8, 9])
    bench.forwards.release()
    bench.outcome(answered)
    bench.batcher.close()
    assert bench.outcome(waiting).error is not None
