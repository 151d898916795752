"""A row's captures do not depend on the rows beside it, nor on masking the padding."""

import pytest
import torch

from lensd_api import RequirementNotMet, Site
from lensd_server.engine.anatomy.capture import GatherGroup

ALWAYS = (Site.EMBED, Site.POS_EMBED, Site.BLOCK_OUT, Site.ATTN_WRITE, Site.MLP_WRITE, Site.HEADS)
AT_END = (Site.FINAL_RESIDUAL, Site.RAW_LOGITS, Site.LOGITS)
LENGTHS = (5, 13, 9, 1)


def sites_of(lens):
    units = lens.model.anatomy.units
    sites = {*ALWAYS, *AT_END}
    sites |= {Site.NEURONS} if "neuron" in units else {Site.EXPERT_WRITES}
    return sites | ({Site.ATTENTION} if "source" in units else set())


def test_rows_of_unequal_length_equal_themselves_alone(lens, close):
    rows = [lens.tokens(length, seed) for seed, length in enumerate(LENGTHS)]
    sites = sites_of(lens)
    together = lens.run(rows, [lens.group(*sites, rows=LENGTHS)])[0]
    start = 0
    for row, length in zip(rows, LENGTHS, strict=True):
        alone = lens.capture(row, *sites)
        for site in sites:
            found = together[site][start : start + length]
            if site is Site.ATTENTION:
                assert not found[..., length:].any()
                found = found[..., :length]
            close(found, alone[site])
        start += length


def test_values_are_stacked_row_by_row(lens, close):
    if "source" not in lens.model.anatomy.units:
        pytest.skip("offers no source unit")
    rows = [lens.tokens(length, seed) for seed, length in enumerate(LENGTHS)]
    together = lens.run(rows, [lens.group(Site.VALUES, rows=LENGTHS)])[0][Site.VALUES]
    alone = [lens.capture(row, Site.VALUES)[Site.VALUES] for row in rows]
    close(together, torch.cat(alone))


def test_groups_get_their_own_rows_positions_layers_and_sites(lens, close):
    rows = [lens.tokens(length, seed) for seed, length in enumerate(LENGTHS)]
    groups = [
        GatherGroup(frozenset({Site.BLOCK_OUT, Site.LOGITS}), (2,), (1, 0), ((12, 3), (4,))),
        GatherGroup(frozenset({Site.HEADS, Site.LOGITS, Site.EMBED}), (0, 1), (2, 1), ((0,), (3, 12))),
        GatherGroup(frozenset({Site.BLOCK_IN}), (1,), (3,), ((0,),)),
    ]
    for found, group in zip(lens.run(rows, groups), groups, strict=True):
        assert set(found) == group.sites
        start = 0
        for row, positions in zip(group.rows, group.positions, strict=True):
            for site in group.sites:
                alone = lens.capture(rows[row], site, layers=group.layers)[site]
                close(found[site][start : start + len(positions)], alone[list(positions)])
            start += len(positions)


def test_masking_the_padding_changes_nothing(lens, close):
    short, long = lens.tokens(6, 1), lens.tokens(13, 2)
    hole = [1] * 13
    hole[4] = 0
    group = GatherGroup(frozenset({Site.LOGITS}), (), (0,), ((5,),))
    # A hole in one row makes the whole batch run with a mask.
    masked = lens.run([short, long], [group], masks=[[1] * 6, hole])[0][Site.LOGITS]
    close(masked, lens.capture(short, Site.LOGITS)[Site.LOGITS][5:])


def test_a_masked_span_with_renumbered_positions_is_a_shorter_text(lens, close):
    # Within the window of the tiny sliding-window models, which count slots, not positions.
    tokens = lens.tokens(8)
    seen = [1, 1, 0, 0, 1, 1, 1, 1]
    renumbered = [0, 1, 2, 2, 2, 3, 4, 5]
    shorter = tuple(t for t, s in zip(tokens, seen, strict=True) if s)
    kept = [p for p, s in enumerate(seen) if s]
    positions = [renumbered] if lens.model.structure.takes_position_ids else None
    found = lens.run([tokens], [lens.group(Site.LOGITS, rows=(8,))], masks=[seen], position_ids=positions)
    close(found[0][Site.LOGITS][kept], lens.capture(shorter, Site.LOGITS)[Site.LOGITS])


def test_positions_alone_are_not_taken_for_packed_texts(lens, close):
    if not lens.model.structure.takes_position_ids:
        pytest.skip("takes no position ids")
    tokens = lens.tokens(7)
    jumping = [0, 1, 2, 5, 6, 7, 8]
    found = lens.run([tokens], [lens.group(Site.ATTN_WRITE, rows=(7,))], position_ids=[jumping])[0]
    # The same text with the gap filled by masked tokens: only the positions matter.
    filled = (*tokens[:3], 9, 9, *tokens[3:])
    seen, straight = [1, 1, 1, 0, 0, 1, 1, 1, 1], list(range(9))
    if lens.name in {"mistral", "gemma2", "gemma3"}:
        filled, seen, straight = filled[:8], seen[:8], straight[:8]  # stay within the window
    other = lens.run([filled], [lens.group(Site.ATTN_WRITE, rows=(len(seen),))], [seen], [straight])[0]
    kept = [p for p, s in enumerate(seen) if s]
    close(found[Site.ATTN_WRITE][: len(kept)], other[Site.ATTN_WRITE][kept])


def test_a_masked_beginning_leaves_the_rest_finite(lens):
    tokens = lens.tokens(6)
    found = lens.run([tokens], [lens.group(Site.LOGITS, rows=(6,))], masks=[[0, 0, 1, 1, 1, 1]])
    assert torch.isfinite(found[0][Site.LOGITS][2:]).all()


def test_a_model_without_position_ids_refuses_them(lens_of):
    lens = lens_of("bloom")
    with pytest.raises(RequirementNotMet, match="BloomForCausalLM takes no position ids"):
        lens.run([(5, 6)], [lens.group(Site.LOGITS, rows=(2,))], position_ids=[[0, 1]])
