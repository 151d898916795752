"""Which rows run together."""

import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensd_server.engine.batching.choose import choose_rows
from lensd_server.engine.batching.price import Price

#: Two CPU cores, as the prototype measured them: saved forwards are worth 40 tokens of padding.
CPU = Price.linear(0.066, 0.00163)
#: The same kind of machine with a quicker library: a saved forward is worth more of its tokens.
ONEDNN = Price(((8, 0.037), (64, 0.090), (128, 0.127), (256, 0.196), (512, 0.333)))
#: A device that is not busy below a thousand tokens.
FLAT = Price(((8, 0.005), (1024, 0.005), (2048, 0.009)))

ROWS = st.lists(st.tuples(st.integers(1, 200), st.integers(0, 3)), min_size=1, max_size=60)
BUDGETS = st.tuples(*[st.integers(1, 1000)] * 4)
PRICES = st.one_of(
    st.builds(Price.linear, st.floats(0, 300), st.just(1.0)), st.just(CPU), st.just(ONEDNN), st.just(FLAT)
)


def choose(rows: list[tuple[int, int]], budgets: tuple[int, ...], price: Price) -> list[int]:
    return choose_rows([length for length, _ in rows], [level for _, level in rows], budgets, price)


def padded(lengths: list[int]) -> int:
    return len(lengths) * max(lengths)


@given(ROWS, BUDGETS, PRICES)
def test_the_first_row_is_always_in(
    rows: list[tuple[int, int]], budgets: tuple[int, ...], price: Price
) -> None:
    assert 0 in choose(rows, budgets, price)


@given(ROWS, BUDGETS, PRICES)
def test_rows_join_only_within_the_budget_of_their_level(
    rows: list[tuple[int, int]], budgets: tuple[int, ...], price: Price
) -> None:
    chosen = choose(rows, budgets, price)
    assert len(set(chosen)) == len(chosen)
    if len(chosen) > 1:
        last = max(rows[i][1] for i in chosen[1:])
        assert padded([rows[i][0] for i in chosen]) <= budgets[last]


@given(ROWS, BUDGETS, PRICES)
def test_a_batch_is_never_dearer_than_its_rows_one_by_one(
    rows: list[tuple[int, int]], budgets: tuple[int, ...], price: Price
) -> None:
    own = [rows[i][0] for i in choose(rows, budgets, price)]
    alone = sum(price.seconds(length) for length in own)
    assert price.seconds(padded(own)) <= alone * (1 + 1e-9)


@given(ROWS, BUDGETS, st.integers(0, 300))
def test_each_row_adds_no_more_padding_than_a_forward_is_worth(
    rows: list[tuple[int, int]], budgets: tuple[int, ...], worth: int
) -> None:
    own = [rows[i][0] for i in choose(rows, budgets, Price.linear(worth, 1.0))]
    assert padded(own) - sum(own) <= worth * (len(own) - 1) * (1 + 1e-9)


@given(st.lists(st.integers(1, 8), min_size=1, max_size=30))
def test_rows_of_one_length_run_in_the_order_of_their_turns(spread: list[int]) -> None:
    chosen = choose_rows([4] * len(spread), [0] * len(spread), [40], CPU)
    assert chosen == list(range(min(10, len(spread))))


def test_similar_lengths_are_preferred() -> None:
    lengths = [50, 4, 49, 5, 51, 48]
    assert choose_rows(lengths, [0] * 6, [210], CPU) == [0, 2, 4, 5]


def test_rows_of_a_higher_level_fill_what_the_lower_ones_leave() -> None:
    assert choose_rows([8, 8, 8, 8], [0, 2, 1, 0], [24] * 4, CPU) == [0, 2, 3]


def test_a_level_may_be_kept_out_of_a_batch_that_is_long_enough() -> None:
    assert choose_rows([8, 8, 8, 8], [0, 2, 0, 2], [100, 100, 24, 24], CPU) == [0, 1, 2]


def test_a_row_wider_than_the_budget_runs_alone() -> None:
    assert choose_rows([900, 3, 900], [0] * 3, [512], Price.linear(1e9, 1.0)) == [0]


def test_padding_is_free_while_the_device_is_not_busy() -> None:
    assert choose_rows([500, 8], [0, 0], [4096], FLAT) == [0, 1]
    assert choose_rows([500, 8], [0, 0], [4096], CPU) == [0]


def test_a_row_that_is_better_company_for_others_is_left_to_them() -> None:
    """As measured on two cores with oneDNN: 64 would join 128 rather than run alone, but not leave 60 alone."""
    assert choose_rows([128, 126, 64], [0] * 3, [1336], ONEDNN) == [0, 1, 2]
    assert choose_rows([128, 126, 64, 60], [0] * 4, [1336], ONEDNN) == [0, 1]


def uniform(draws: random.Random) -> int:
    return draws.randint(8, 512)


def mostly_short(draws: random.Random) -> int:
    return round(math.exp(draws.uniform(math.log(8), math.log(512))))


@pytest.mark.parametrize("clients", [4, 16, 64])
@pytest.mark.parametrize("length", [uniform, mostly_short])
@pytest.mark.parametrize("price", [CPU, ONEDNN], ids=["mkl", "onednn"])
def test_mixed_lengths_are_padded_by_less_than_a_fifth(
    clients: int, length: Callable[[random.Random], int], price: Price
) -> None:
    draws = random.Random(0)
    budget = price.saturation(128, 2048)
    waiting, tokens, with_padding = [length(draws) for _ in range(clients)], 0, 0
    for _ in range(300):
        chosen = choose_rows(waiting, [0] * clients, [budget], price)
        own = [waiting[i] for i in chosen]
        tokens, with_padding = tokens + sum(own), with_padding + padded(own)
        # Whoever was answered comes again, behind the others.
        waiting = [n for i, n in enumerate(waiting) if i not in chosen] + [length(draws) for _ in own]
    assert with_padding / tokens <= 1.2
