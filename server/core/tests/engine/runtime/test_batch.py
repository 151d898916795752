"""Which rows run together."""

import torch

from lensd_api import Site
from lensd_server.engine.batching.batch import PreparedRow, group_rows, pad


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
