"""Which rows run together."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from lensd_api import Site
from lensd_server.engine.batching.batch import PreparedRow, group_rows, pad
from lensd_server.engine.batching.choose import choose_rows

ROWS = st.lists(st.tuples(st.integers(1, 200), st.integers(0, 3)), min_size=1, max_size=60)


def choose(rows: list[tuple[int, int]], budget: int, worth: int) -> list[int]:
    return choose_rows([length for length, _ in rows], [level for _, level in rows], budget, worth)


@given(ROWS, st.integers(1, 1000), st.integers(0, 300))
def test_the_first_row_is_always_in(rows: list[tuple[int, int]], budget: int, worth: int) -> None:
    assert 0 in choose(rows, budget, worth)


@given(ROWS, st.integers(1, 1000), st.integers(0, 300))
def test_no_batch_of_several_rows_exceeds_its_budget(
    rows: list[tuple[int, int]], budget: int, worth: int
) -> None:
    chosen = choose(rows, budget, worth)
    assert len(set(chosen)) == len(chosen)
    if len(chosen) > 1:
        assert len(chosen) * max(rows[i][0] for i in chosen) <= budget


@given(ROWS, st.integers(1, 1000), st.integers(0, 300))
def test_each_row_adds_no_more_padding_than_a_forward_is_worth(
    rows: list[tuple[int, int]], budget: int, worth: int
) -> None:
    own = [rows[i][0] for i in choose(rows, budget, worth)]
    assert len(own) * max(own) - sum(own) <= worth * (len(own) - 1)


@given(st.lists(st.integers(1, 8), min_size=1, max_size=30))
def test_rows_of_one_length_run_in_the_order_of_their_turns(spread: list[int]) -> None:
    chosen = choose_rows([4] * len(spread), [0] * len(spread), 40, 1000)
    assert chosen == list(range(min(10, len(spread))))


def test_similar_lengths_are_preferred() -> None:
    lengths = [50, 4, 49, 5, 51, 48]
    assert choose_rows(lengths, [0] * 6, 210, 20) == [0, 2, 4, 5]


def test_rows_of_a_higher_level_fill_what_the_lower_ones_leave() -> None:
    assert choose_rows([8, 8, 8, 8], [0, 2, 1, 0], 24, 100) == [0, 2, 3]


def test_a_row_wider_than_the_budget_runs_alone() -> None:
    assert choose_rows([900, 3, 900], [0] * 3, 512, 1e9) == [0]


def test_padding_is_on_the_right_and_masked() -> None:
    inputs = pad([PreparedRow((7, 8, 9), (2,)), PreparedRow((5,), (0,))])
    assert inputs.input_ids[0].tolist() == [7, 8, 9]
    assert inputs.input_ids[1, 0] == 5
    assert inputs.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert inputs.position_ids is None
    assert inputs.lengths == (3, 1)


def test_positions_are_said_for_all_rows_when_one_is_masked() -> None:
    masked = PreparedRow((7, 8, 9), (2,), attention_mask=(1, 0, 1), position_ids=(0, 1, 1))
    inputs = pad([masked, PreparedRow((5, 6), (1,))])
    assert inputs.position_ids is not None
    assert inputs.position_ids[0].tolist() == [0, 1, 1]
    assert inputs.position_ids[1, :2].tolist() == [0, 1]
    assert torch.equal(inputs.attention_mask, torch.tensor([[1, 0, 1], [1, 1, 0]]))


def test_rows_are_grouped_by_what_is_captured_and_made_of_it() -> None:
    sites = frozenset({Site.HEADS})
    rows = [PreparedRow((1,), (0,)), PreparedRow((1, 2), (0, 1)), PreparedRow((3,), (0,))]
    groups = group_rows(rows, [(sites, (0,), len), (sites, (0,), max), (sites, (0,), len)], [[0, 2], [1]])
    assert [members for _, members in groups] == [(0, 2), (1,)]
    assert [group.rows for group, _ in groups] == [(0, 0), (1,)]
    assert groups[1][0].positions == ((0, 1),)
