"""Which rows run together."""

import torch

from lensd_api import Site
from lensd_server.engine.batching.batch import PreparedRow, Step, Wanted, group_wanted, pad


def test_padding_is_on_the_right_and_masked() -> None:
    inputs = pad([Step.whole(PreparedRow((7, 8, 9), (2,))), Step.whole(PreparedRow((5,), (0,)))])
    assert inputs.input_ids[0].tolist() == [7, 8, 9]
    assert inputs.input_ids[1, 0] == 5
    assert inputs.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert inputs.position_ids is None
    assert inputs.lengths == (3, 1)


def test_positions_are_said_for_all_rows_when_one_is_masked() -> None:
    masked = PreparedRow((7, 8, 9), (2,), attention_mask=(1, 0, 1), position_ids=(0, 1, 1))
    inputs = pad([Step.whole(masked), Step.whole(PreparedRow((5, 6), (1,)))])
    assert inputs.position_ids is not None
    assert inputs.position_ids[0].tolist() == [0, 1, 1]
    assert inputs.position_ids[1, :2].tolist() == [0, 1]
    assert torch.equal(inputs.attention_mask, torch.tensor([[1, 0, 1], [1, 1, 0]]))


def test_what_is_captured_is_grouped_by_what_is_made_of_it() -> None:
    sites = frozenset({Site.HEADS})
    wanted = [
        Wanted(0, (sites, (0,), len), (0,)),
        Wanted(1, (sites, (0,), max), (0, 1)),
        Wanted(0, (sites, (0,), len), (0,)),
    ]
    groups = group_wanted(wanted)
    assert [members for _, members in groups] == [(0, 2), (1,)]
    assert [group.rows for group, _ in groups] == [(0, 0), (1,)]
    assert groups[1][0].positions == ((0, 1),)


def test_a_step_says_where_in_it_the_asked_positions_are() -> None:
    step = Step(PreparedRow((5, 6, 7, 8), positions=(3, 1, 2, 1)), 1, 3)
    assert step.asked == (1, 2, 3)
    assert step.relative(step.asked) == (0, 1, 0)
    assert not step.is_last
