"""Whose rows go first."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lensd_server.engine.batching.fairness import Claim, levels, take_turns
from lensd_server.engine.batching.ticket import Ticket

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


def test_calls_from_one_host_are_one_caller() -> None:
    assert Ticket(peer="ipv4:10.0.0.1:5000").caller == Ticket(peer="ipv4:10.0.0.1:5001").caller
    assert Ticket(peer="ipv4:10.0.0.1:5000").caller != Ticket(peer="ipv4:10.0.0.2:5000").caller
    assert Ticket().caller != Ticket().caller


def test_one_identity_takes_turns_as_one_wherever_it_calls_from() -> None:
    here, there = (Ticket(identity="trainer", peer=f"ipv4:10.0.0.{n}:5000") for n in (1, 2))
    assert here.caller == there.caller == "trainer"
    assert here.caller != Ticket(identity="other", peer=here.peer).caller
