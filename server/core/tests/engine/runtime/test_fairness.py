"""Whose rows go first."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lensd_server.engine.batching.batch import PreparedRow
from lensd_server.engine.batching.call import ForwardCall
from lensd_server.engine.batching.fairness import Claim, levels, take_turns
from lensd_server.engine.batching.queue import PATIENCE_S, BatchLimits, RowQueue
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.events import Priority

CLAIMS = st.lists(
    st.builds(
        Claim,
        urgent=st.booleans(),
        peer=st.sampled_from("XYZ"),
        owner=st.sampled_from("abcdef"),
        peer_seen=st.integers(0, 3),
        owner_seen=st.integers(0, 3),
        since=st.floats(0, 10),
    ),
    max_size=40,
)


def claim(owner: str, *, peer: str = "", urgent: bool = True, seen: int = 0, since: float = 0.0) -> Claim:
    return Claim(urgent, peer or owner, owner, seen, seen, since)


def turns(claims: list[Claim]) -> str:
    return "".join(str(claims[i].owner) for i in take_turns(claims))


@given(CLAIMS)
def test_every_row_has_one_turn_and_urgent_ones_come_first(claims: list[Claim]) -> None:
    order = take_turns(claims)
    assert sorted(order) == list(range(len(claims)))
    assert all(claims[a].urgent >= claims[b].urgent for a, b in pairwise(order))


def test_a_late_single_row_goes_with_the_first_of_a_thousand() -> None:
    claims = [claim("a")] * 1000 + [claim("b", since=9.0)]
    assert turns(claims)[:3] == "aba"


def test_analyses_alternate() -> None:
    assert turns([claim("a")] * 4 + [claim("b")] * 3 + [claim("c")]) == "abcababa"


def test_callers_alternate_before_their_analyses_do() -> None:
    many = [claim(owner, peer="X") for owner in "abcd" for _ in range(2)]
    assert turns([*many, *[claim("z", peer="Y", since=5.0)] * 3]).startswith("azbzcz")


def test_who_was_served_longest_ago_is_first_in_a_round() -> None:
    assert turns([claim("a", seen=5), claim("b", seen=3), claim("c", seen=4)]) == "bca"


def test_the_older_row_wins_when_nothing_else_decides() -> None:
    assert turns([claim("a", since=2.0), claim("b", since=1.0)]) == "ba"


def test_first_rows_of_all_analyses_may_fill_a_batch_before_second_ones() -> None:
    assert levels([claim("a"), claim("b"), claim("a"), claim("c", urgent=False)]) == [0, 0, 1, 2]


def call(ticket: Ticket, rows: int, *, at: float = 0.0, first: int = 0) -> ForwardCall:
    prepared = [PreparedRow((first + i, 1, 2, 3), (3,)) for i in range(rows)]
    made = ForwardCall(ticket, prepared, frozenset(), (), None, None, settled=lambda call: None)
    made.submitted = at
    return made


def test_small_requests_ride_along_while_a_large_one_is_served() -> None:
    queue = RowQueue(BatchLimits(max_tokens=16, worth=100.0))
    large = Ticket("large")
    queue.add(call(large, 100))
    for number in range(10):
        small = Ticket(f"small-{number}")
        queue.add(call(small, 1, at=1.0 + number, first=1000 + number))
        batch, _ = queue.take(1.0 + number)
        owners = [row.call.ticket.request_id for row in batch]
        assert owners.count(small.request_id) == 1
        assert owners.count("large") == 3


def test_many_analyses_are_all_served_before_any_is_served_twice() -> None:
    queue = RowQueue(BatchLimits(max_tokens=16, worth=100.0))
    for number in range(12):
        queue.add(call(Ticket(str(number)), 3, first=100 * number))
    served = [row.call.ticket.request_id for _ in range(3) for row in queue.take(0.0)[0]]
    assert sorted(served, key=int) == [str(number) for number in range(12)]


def test_an_analysis_is_served_though_new_ones_keep_coming() -> None:
    queue = RowQueue(BatchLimits(max_tokens=16, worth=100.0))
    patient = Ticket("patient")
    queue.add(call(patient, 20))
    batches = 0
    while queue.pending(patient) and batches < 200:
        for number in range(4):
            queue.add(call(Ticket(), 1, at=1.0 + batches, first=1000 + 4 * batches + number))
        queue.take(1.0 + batches)
        batches += 1
    assert batches < 200


def test_a_row_of_low_priority_counts_as_urgent_after_a_while() -> None:
    queue = RowQueue(BatchLimits(max_tokens=4, worth=100.0))
    queue.add(call(Ticket("low", priority=Priority.BATCH), 1))
    queue.add(call(Ticket("high"), 1, at=PATIENCE_S, first=7))
    assert [row.call.ticket.request_id for row in queue.take(PATIENCE_S + 0.1)[0]] == ["low"]


def test_calls_from_one_host_are_one_caller() -> None:
    assert Ticket(peer="ipv4:10.0.0.1:5000").caller == Ticket(peer="ipv4:10.0.0.1:5001").caller
    assert Ticket(peer="ipv4:10.0.0.1:5000").caller != Ticket(peer="ipv4:10.0.0.2:5000").caller
    assert Ticket().caller != Ticket().caller


def test_one_identity_takes_turns_as_one_wherever_it_calls_from() -> None:
    here, there = (Ticket(identity="trainer", peer=f"ipv4:10.0.0.{n}:5000") for n in (1, 2))
    assert here.caller == there.caller == "trainer"
    assert here.caller != Ticket(identity="other", peer=here.peer).caller
