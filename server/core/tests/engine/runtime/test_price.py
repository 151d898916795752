"""What a forward costs is measured once, and is believed only where it can be true."""

import json
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensd_server.engine.batching import price
from lensd_server.engine.batching.pace import Pace
from lensd_server.engine.batching.price import LONGEST_S, REPEATS, Price, Prices

LINE = Price.linear(0.066, 0.00163)
FLAT = Price(((8, 0.005), (1024, 0.005), (2048, 0.009)))
POINTS = st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1)), min_size=2, max_size=6)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Pretends what forwards take; notes their sizes."""

    class Timed:
        truth = LINE

        def __init__(self) -> None:
            self.sizes: list[int] = []
            #: How often other work makes a size take thrice as long.
            self.held_up: Counter[int] = Counter()

        def __call__(self, model: Any, device: Any, lengths: Sequence[int]) -> float:
            size = sum(lengths)
            self.sizes.append(size)
            self.held_up[size] -= 1
            return self.truth.seconds(size) * (3.0 if self.held_up[size] >= 0 else 1.0)

    fake = Timed()
    monkeypatch.setattr(price, "time_forward", fake)
    return fake


def price_of(prices: Prices, tiny: Any) -> Price:
    loaded = tiny("llama")
    return prices.of(loaded.model, loaded.device, "revision")


def rising(steps: list[tuple[int, float]]) -> Price:
    tokens, seconds, points = 0, 0.0, []
    for more, longer in steps:
        tokens, seconds = tokens + more, seconds + longer
        points.append((tokens, seconds))
    return Price(tuple(points))


@given(POINTS)
def test_a_price_is_what_was_measured_and_never_falls(steps: list[tuple[int, float]]) -> None:
    made = rising(steps)
    assert [made.seconds(tokens) for tokens, _ in made.points] == pytest.approx([s for _, s in made.points])
    line = [made.seconds(tokens) for tokens in range(0, 2 * made.points[-1][0], 7)]
    assert all(b >= a - 1e-9 for a, b in pairwise(line))


@given(POINTS, st.floats(0, 5))
def test_as_many_tokens_fit_into_a_time_as_do_not_exceed_it(
    steps: list[tuple[int, float]], seconds: float
) -> None:
    made = rising(steps)
    tokens = made.tokens_within(seconds)
    assert tokens == 0 or made.seconds(tokens) <= seconds
    assert tokens > 1 << 29 or made.seconds(tokens + 1) > seconds


def test_a_line_saturates_where_the_fixed_price_hardly_counts() -> None:
    assert LINE.saturation(128, 2048) == pytest.approx(12 * 0.066 / 0.00163, abs=8)


def test_a_device_saturates_behind_its_flat_part() -> None:
    assert FLAT.saturation(128, 16384) > 1024


def test_saturation_stays_within_its_bounds() -> None:
    assert Price.linear(0.0, 1.0).saturation(128, 2048) == 128
    assert Price.linear(1.0, 0.0).saturation(128, 2048) == 2048


def test_a_line_is_measured_until_forwards_take_long(tiny: Any, timed: Any) -> None:
    found = price_of(Prices(), tiny)
    assert found.seconds(400) == pytest.approx(LINE.seconds(400))
    assert sorted(set(timed.sizes)) == [8, 64, 128]
    assert max(LINE.seconds(size) for size in timed.sizes) <= LONGEST_S


def test_on_a_machine_that_crawls_each_size_is_tried_once(tiny: Any, timed: Any) -> None:
    timed.truth = Price.linear(3.0, 0.1)
    price_of(Prices(), tiny)
    assert timed.sizes == [8, 64]


def test_measuring_ends_where_the_device_is_saturated(tiny: Any, timed: Any) -> None:
    timed.truth = Price.linear(1e-5, 1e-5)
    price_of(Prices(), tiny)
    assert max(timed.sizes) == 128


def test_a_forward_that_once_was_quicker_than_a_smaller_one_costs_as_much(tiny: Any, timed: Any) -> None:
    timed.truth = Price(((8, 0.02), (64, 0.01)))
    assert [seconds for _, seconds in price_of(Prices(), tiny).points[:2]] == [0.02, 0.02]


def test_a_size_that_others_slowed_down_is_tried_again(tiny: Any, timed: Any) -> None:
    """One burst of other work must not have the device taken for saturated, for good."""
    timed.held_up[128] = 1
    assert price_of(Prices(), tiny).points == tuple((size, LINE.seconds(size)) for size in (8, 64, 128))
    assert timed.sizes.count(128) == 1 + REPEATS


def test_no_forward_costs_more_than_the_smaller_ones_it_could_be(tiny: Any, timed: Any) -> None:
    timed.held_up[128] = 1000
    assert price_of(Prices(), tiny).seconds(128) == pytest.approx(2 * LINE.seconds(64))


def test_a_measurement_is_remembered(tiny: Any, timed: Any, tmp_path: Path) -> None:
    first = price_of(Prices(tmp_path), tiny)
    count = len(timed.sizes)
    assert price_of(Prices(tmp_path), tiny) == first
    assert timed.sizes[count:] == [64]


def test_what_was_measured_on_a_busy_machine_is_measured_again(tiny: Any, timed: Any, tmp_path: Path) -> None:
    timed.truth = Price.linear(0.2, 0.002)
    price_of(Prices(tmp_path), tiny)
    timed.truth = LINE
    assert price_of(Prices(tmp_path), tiny).seconds(300) == pytest.approx(LINE.seconds(300))
    timed.truth = Price.linear(0.2, 0.002)
    assert price_of(Prices(tmp_path), tiny).seconds(300) == pytest.approx(LINE.seconds(300))


def test_a_size_that_seemed_to_end_all_gain_is_looked_at_again(tiny: Any, timed: Any, tmp_path: Path) -> None:
    """Of what is remembered, for as long as it says so: it may have been held up each time it was measured."""
    timed.held_up[128] = 2
    assert price_of(Prices(tmp_path), tiny).seconds(128) == pytest.approx(2 * LINE.seconds(64))
    assert price_of(Prices(tmp_path), tiny).seconds(128) == pytest.approx(LINE.seconds(128))


@pytest.mark.parametrize(
    "damage",
    [
        {},
        [],
        {"worth": 40.0},
        {"points": []},
        {"points": [[8, 0.1]]},
        {"points": [[8, 0.1], [8, 0.2]]},
        {"points": [[8, 0.2], [64, 0.1]]},
        {"points": [[8, -1.0], [64, 0.1]]},
        {"points": [[8, "x"], [64, 0.1]]},
        {"points": [[8, 0.1], [64, float("inf")]]},
        {"points": [[8, 0.1], [64, 0.2], [128, 0.5]]},
        {"points": [[0, 0.1], [64, 0.2]]},
    ],
)
def test_a_damaged_memory_is_measured_again(tiny: Any, timed: Any, tmp_path: Path, damage: Any) -> None:
    first = price_of(Prices(tmp_path), tiny)
    for memo in tmp_path.iterdir():
        memo.write_text(json.dumps(damage), encoding="utf-8")
    assert price_of(Prices(tmp_path), tiny) == first


def test_a_real_model_has_a_price(tiny: Any) -> None:
    loaded = tiny("gpt2")
    found = price.measure(loaded.model, loaded.device)
    least, most = loaded.device.batch_tokens
    assert least <= found.saturation(least, most) <= most


def test_the_pace_follows_what_batches_take() -> None:
    pace = Pace(LINE)
    assert pace.seconds(100, 480) == pytest.approx(LINE.seconds(100))
    for _ in range(100):
        pace.ran(100, 3 * LINE.seconds(100))
    assert pace.seconds(100, 480) == pytest.approx(3 * LINE.seconds(100), rel=1e-3)


def test_many_tokens_take_several_batches() -> None:
    assert Pace(LINE).seconds(1000, 480) == pytest.approx(2 * LINE.seconds(480) + LINE.seconds(40))
    assert Pace(LINE).seconds(0, 480) == 0.0


def test_one_batch_that_was_held_up_hardly_changes_the_pace() -> None:
    pace = Pace(LINE)
    pace.ran(100, 3600.0)
    assert pace.seconds(100, 480) <= 3 * LINE.seconds(100)
