"""Which captures are asked for, where, and how many at a time."""

from lensd_api import LayerAnatomy, Site, Unit
from lensd_dla import plan
from lensd_dla.params import DlaParams
from plugins.dla.tests.tiny_card import anatomy

ALL = frozenset(Unit)
BLOCK = frozenset({Unit.BLOCK})
COMPONENT = frozenset({Unit.BLOCK, Unit.COMPONENT})


def parts(asked: str, *layers: frozenset[Unit], longest: int = 10, **params: object) -> tuple[plan.Part, ...]:
    values = {"prompt": "a", "unit": asked, **params}
    return plan.plan_parts(DlaParams.parse(values), anatomy(*layers), longest)


def test_a_model_that_offers_the_unit_takes_one_forward() -> None:
    (part,) = parts("head", ALL, ALL)
    assert (part.unit, part.layers, part.first) == (Unit.HEAD, (0, 1), True)
    assert part.sites == {
        Site.EMBED, Site.FINAL_RESIDUAL, Site.RAW_LOGITS, Site.ATTN_WRITE, Site.MLP_WRITE, Site.HEADS
    }  # fmt: skip


def test_layers_that_offer_less_become_a_part_of_their_own() -> None:
    one, other = parts("head", ALL, BLOCK, ALL)
    assert (one.unit, one.layers) == (Unit.HEAD, (0, 2))
    assert (other.unit, other.layers, other.first) == (Unit.BLOCK, (1,), False)
    assert other.sites == {Site.BLOCK_IN, Site.BLOCK_OUT, Site.FINAL_RESIDUAL}


def test_each_unit_falls_back_step_by_step() -> None:
    heads = COMPONENT | {Unit.HEAD}
    assert plan.unit_offered(LayerAnatomy(heads), Unit.SOURCE) is Unit.HEAD
    assert plan.unit_offered(LayerAnatomy(heads), Unit.NEURON) is Unit.COMPONENT
    assert plan.unit_offered(LayerAnatomy(heads), Unit.EXPERT) is Unit.COMPONENT
    assert plan.unit_offered(LayerAnatomy(BLOCK), Unit.SOURCE) is Unit.BLOCK


def test_a_direction_needs_no_logits_and_learned_positions_need_their_site() -> None:
    params = DlaParams.parse({"prompt": "a", "direction": "d"})
    (part,) = plan.plan_parts(params, anatomy(ALL, has_pos_embed=True), 10)
    assert Site.RAW_LOGITS not in part.sites
    assert Site.POS_EMBED in part.sites


def test_values_of_a_long_row_are_captured_few_layers_at_a_time() -> None:
    found = parts("source", *[ALL] * 10, longest=2**17)
    # 2**17 tokens of 4 heads of 16 numbers of 4 bytes are half the budget: two layers a forward
    assert [part.layers for part in found] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert [part.first for part in found] == [True, False, False, False, False]


def test_positions_are_grouped_by_the_memory_they_take() -> None:
    (part,) = parts("component", ALL)
    each = plan.position_bytes(part, anatomy(ALL), "float32", 10)
    assert each == 4 * (384 + 64 + 64 + 64 + 64)
    assert plan.position_bytes(part, anatomy(ALL), "bfloat16", 10) == each // 2
    third = plan.CAPTURE_BUDGET_BYTES // 3
    assert plan.group_positions(range(7), third) == [(0, 1, 2), (3, 4, 5), (6,)]
    assert plan.group_positions((4, 2), 10**12) == [(4,), (2,)]


def test_what_is_coarser_than_asked_is_said_once_per_reason() -> None:
    layers = (
        LayerAnatomy(ALL),
        LayerAnatomy(COMPONENT, refused={Unit.HEAD: "rows miss by 0.1"}),
        LayerAnatomy(COMPONENT, refused={Unit.HEAD: "rows miss by 0.1"}),
    )
    model = anatomy(ALL, ALL, ALL, layers=layers)
    assert list(plan.degradations(model, Unit.HEAD)) == [
        "layers [1, 2] gives component rows in place of head rows: rows miss by 0.1"
    ]
    assert list(plan.degradations(model, Unit.COMPONENT)) == []
