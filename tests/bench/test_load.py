"""The load generator counts right, asks for the same twice, and sees what is wrong with a stream."""

from collections.abc import Sequence
from hashlib import sha256
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensd_proto.v1 import analysis_pb2, results_pb2
from tests.bench.load.mix import KINDS, Lengths, parse_mix
from tests.bench.load.percentiles import Percentiles
from tests.bench.load.plan import Profile, shots
from tests.bench.load.scrape import Scrape
from tests.bench.load.stream import StreamCheck
from tests.bench.load.tally import COMPLETED, End, Tally
from tests.bench.report import Ratio

_TENSOR = bytes(range(8))


def _events(*, name: str = "a") -> list[analysis_pb2.AnalyzeResponse]:
    """A whole stream: two parts of a table, a tensor in two pieces, the end."""
    table = results_pb2.Table()
    digest = analysis_pb2.TensorChecksum(name="heads", sha256=sha256(_TENSOR).hexdigest())
    values = [
        {"accepted": analysis_pb2.Accepted()},
        {"result": results_pb2.Result(name="rows", part=0, table=table)},
        {"result": results_pb2.Result(name="rows", part=1, last=True, table=table)},
        {"result": results_pb2.Result(name="heads", tensor=results_pb2.Tensor(data=_TENSOR[:5], byte_length=8))},
        {"tensor_chunk": results_pb2.TensorChunk(name="heads", offset=5, data=_TENSOR[5:], last=True)},
        {"completed": analysis_pb2.Completed(events=6, results=2, checksums=[digest])},
    ]  # fmt: skip
    return [
        analysis_pb2.AnalyzeResponse(request_id=name, sequence=n, **event)  # pyright: ignore[reportArgumentType]
        for n, event in enumerate(values)
    ]


def _faults(events: Sequence[analysis_pb2.AnalyzeResponse], *, ok: bool = True) -> list[str]:
    check = StreamCheck("a")
    for event in events:
        check.feed(event)
    check.close(ok=ok)
    return check.faults


def test_a_whole_stream_has_no_faults() -> None:
    assert _faults(_events()) == []


@pytest.mark.parametrize("missing", range(6))
def test_a_missing_event_is_seen(missing: int) -> None:
    events = _events()
    del events[missing]
    assert _faults(events)


@pytest.mark.parametrize("twice", range(6))
def test_an_event_that_comes_twice_is_seen(twice: int) -> None:
    events = _events()
    events.insert(twice, events[twice])
    assert _faults(events)


def test_an_event_of_somebody_else_is_seen() -> None:
    assert any("'b'" in fault for fault in _faults([*_events()[:3], _events(name="b")[3], *_events()[4:]]))


def test_a_changed_byte_is_seen() -> None:
    events = _events()
    events[4].tensor_chunk.data = b"xyz"
    assert _faults(events) == ["the digests of the tensors differ"]


def test_a_status_after_completed_is_seen() -> None:
    assert _faults(_events(), ok=False)


def test_the_same_seed_asks_for_the_same() -> None:
    profile = Profile(cancels=0.3, deadlines=0.3, batch=0.3, many=0.3, seed=5)
    first, second = (list(islice(shots(profile), 200)) for _ in range(2))
    assert first == second
    assert first != list(islice(shots(profile.but(seed=6)), 200))
    assert len({shot.request_id for shot in first}) == 200


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_analysis_can_be_sent(kind: str) -> None:
    (shot,) = islice(shots(Profile(mix={kind: 1.0}, many=1.0, deadlines=1.0)), 1)
    message = shot.message()
    assert message.analyzer == KINDS[kind][0]
    assert len(message.params.fields) > 0
    assert message.timeout.ToNanoseconds() > 0


@given(low=st.integers(1, 600), more=st.integers(0, 600), seed=st.integers(0, 1000))
def test_lengths_stay_within_their_range(low: int, more: int, seed: int) -> None:
    import random

    lengths = Lengths(low, low + more)
    draw = random.Random(seed)
    assert all(low <= lengths.draw(draw) <= low + more for _ in range(50))


def test_a_kind_that_does_not_exist_is_refused() -> None:
    assert parse_mix("dla:head=3,graphtracer") == {"dla:head": 3.0, "graphtracer": 1.0}
    with pytest.raises(ValueError, match="no kind 'dlb'"):
        parse_mix("dlb")


@given(values=st.lists(st.floats(1e-6, 1e4), min_size=1, max_size=300), share=st.floats(0.01, 1.0))
def test_percentiles_are_within_a_hundredth(values: list[float], share: float) -> None:
    found = Percentiles()
    for value in values:
        found.add(value)
    rank = next(n for n in range(1, len(values) + 1) if n >= share * len(values))
    exact = sorted(values)[rank - 1]
    assert abs(found.at(share) / exact - 1) < 0.011
    assert found.largest == max(values)


def test_refusals_without_a_time_to_retry_are_counted_apart() -> None:
    tally = Tally()
    tally.add(End("a", "dla", COMPLETED, seconds=0.1, accepted=True))
    tally.add(End("b", "dla", "RESOURCE_EXHAUSTED", "QUEUE_FULL", retry_after_s=1.0))
    tally.add(End("c", "dla", "UNAVAILABLE", "DRAINING"))
    tally.add(End("d", "dla", "INTERNAL", accepted=True))
    tally.add(End("e", "dla", "CANCELLED", accepted=True))
    assert (tally.ended, tally.completed, tally.refused, tally.refused_with_retry, tally.broken) == (
        5,
        1,
        2,
        1,
        1,
    )


def test_a_histogram_is_the_difference_of_two_scrapes() -> None:
    before, after = (
        Scrape.parse(
            "# TYPE lensd_x_seconds histogram\n"
            f'lensd_x_seconds_bucket{{model="m",le="1.0"}} {low}\n'
            f'lensd_x_seconds_bucket{{model="m",le="3.0"}} {high}\n'
            f'lensd_x_seconds_bucket{{model="m",le="+Inf"}} {high}\n'
            f'lensd_x_seconds_sum{{model="m"}} {total}\nlensd_x_seconds_count{{model="m"}} {high}\n'
        )
        for low, high, total in ((5, 5, 2.5), (5, 15, 22.5))
    )
    found = after.since(before).histogram("lensd_x_seconds", model="m")
    assert (found.count, found.mean) == (10, 2.0)
    assert found.at(0.5) == 2.0  # all ten between one and three


def test_a_target_is_met_by_the_median() -> None:
    ratio = Ratio("mine", "theirs", [1.0, 1.1, 3.0], at_most=1.15)
    assert (ratio.median, ratio.met) == (1.1, True)
    assert Ratio("mine", "theirs", [1.0, 1.2, 3.0], at_most=1.15).verdict == "[red]missed by 4.3%[/]"
