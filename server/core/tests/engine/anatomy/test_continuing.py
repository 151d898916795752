"""A text read in parts, beside others with pasts of other lengths, gives what it gives when read whole."""

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lensd_api import RequirementNotMet, Site
from lensd_server.engine.anatomy.capture import GatherGroup, run_batch
from lensd_server.engine.anatomy.continuing import check_continuation
from lensd_server.engine.anatomy.inspect import InspectedModel, inspect_model
from lensd_server.engine.anatomy.past import LaneCache, Past, settle
from lensd_server.tiny_engine import hook_count
from lensd_server.tiny_models import TINY

LENGTHS = (13, 9, 4, 11)
STEPS = ((6, 3, 0, 10), (4, 4, 2, 1), (3, 2, 2, 0))


def sites_of(lens: Any) -> frozenset[Site]:
    units = lens.model.anatomy.units
    sites = {Site.EMBED, Site.POS_EMBED, Site.BLOCK_OUT, Site.ATTN_WRITE, Site.HEADS, Site.LOGITS}
    sites |= {Site.NEURONS} if "neuron" in units else {Site.EXPERT_WRITES, Site.EXPERT_IDS}
    return frozenset(sites | ({Site.ATTENTION, Site.VALUES} if "source" in units else set()))


def read(
    model: InspectedModel,
    pasts: Sequence[Past | None],
    texts: Sequence[Sequence[int]],
    sites: frozenset[Site],
    *,
    spare: int = 0,
    masks: Sequence[Sequence[int]] | None = None,
    position_ids: Tensor | None = None,
) -> tuple[list[Past], list[dict[Site, Tensor]]]:
    """What every lane has read after its new tokens, and its captures at all of them."""
    lengths = [len(text) for text in texts]
    width = max(lengths)
    cache = LaneCache(pasts, width, n_layers=model.anatomy.n_layers, spare=spare)
    ids = torch.tensor([[*text, *([0] * (width - len(text)))] for text in texts])
    seen = torch.zeros(len(texts), cache.offset + width, dtype=torch.long)
    for lane, length in enumerate(lengths):
        own = masks[lane] if masks is not None else [1] * (cache.offset + length - cache.begins(lane))
        seen[lane, cache.begins(lane) : cache.offset + length] = torch.tensor(own)
    layers = tuple(range(model.anatomy.n_layers))
    groups = [
        GatherGroup(sites, layers, (lane,), (tuple(range(length)),)) for lane, length in enumerate(lengths)
    ]
    found = run_batch(model, ids, seen, position_ids, lengths, groups, cache)
    return cache.kept(lengths), found


def test_every_architecture_reads_on(lens: Any) -> None:
    assert check_continuation(lens.model.structure).bytes_per_token > 0


def test_what_has_been_read_is_freed_with_its_last_reference(lens: Any) -> None:
    gc.disable()
    try:
        kept, _ = read(lens.model, [None], [[3, 4, 5]], frozenset({Site.FINAL_RESIDUAL}))
        again, _ = read(lens.model, kept, [[6]], frozenset({Site.FINAL_RESIDUAL}))
        slabs = [weakref.ref(past.slab) for past in (*kept, *again)]
        del kept, again
        assert [slab() for slab in slabs] == [None, None]
    finally:
        gc.enable()


def test_parts_of_unequal_lengths_equal_the_whole(lens: Any, close: Callable[..., None]) -> None:
    texts = [lens.tokens(length, seed) for seed, length in enumerate(LENGTHS)]
    sites = sites_of(lens)
    whole = [lens.capture(text, *sites) for text in texts]
    pasts: list[Past | None] = [None] * len(texts)
    done = [0] * len(texts)
    for step in STEPS:
        lanes = [lane for lane, new in enumerate(step) if new]
        parts = [texts[lane][done[lane] : done[lane] + step[lane]] for lane in lanes]
        kept, found = read(lens.model, [pasts[lane] for lane in lanes], parts, sites)
        for lane, past, captures in zip(lanes, kept, found, strict=True):
            now = done[lane] + step[lane]
            assert len(past) == now
            for site in sites:
                if site is Site.VALUES:
                    expected = whole[lane][site][:now]
                elif site is Site.ATTENTION:
                    expected = whole[lane][site][done[lane] : now, ..., :now]
                else:
                    expected = whole[lane][site][done[lane] : now]
                close(captures[site], expected)
            pasts[lane], done[lane] = past, now


def test_lanes_that_stay_together_grow_in_place(lens: Any, close: Callable[..., None]) -> None:
    texts = [lens.tokens(12, seed) for seed in range(3)]
    logits = frozenset({Site.LOGITS})
    kept, _ = read(lens.model, [None] * 3, [text[:9] for text in texts], logits, spare=2)
    slab = kept[0].slab
    for position in (9, 10):
        kept, found = read(lens.model, kept, [text[position : position + 1] for text in texts], logits)
        assert all(past.slab is slab for past in kept)
        for text, captures in zip(texts, found, strict=True):
            close(captures[Site.LOGITS], lens.capture(text, Site.LOGITS)[Site.LOGITS][position][None])
    kept, _ = read(lens.model, kept, [text[11:] for text in texts], logits)
    assert kept[0].slab is not slab  # no room was left


def test_one_past_can_be_read_on_from_several_times(lens: Any, close: Callable[..., None]) -> None:
    logits = frozenset({Site.LOGITS})
    shared = lens.tokens(8)
    (past,), _ = read(lens.model, [None], [shared], logits, spare=8)
    for seeds in ((1, 2, 3), (4,), (5, 6)):
        endings = [lens.tokens(3 + seed, seed) for seed in seeds]
        _, found = read(lens.model, [past] * len(seeds), endings, logits)
        for ending, captures in zip(endings, found, strict=True):
            whole = lens.capture((*shared, *ending), Site.LOGITS)[Site.LOGITS]
            close(captures[Site.LOGITS], whole[len(shared) :])


def test_a_masked_span_of_the_past_stays_masked(lens: Any, close: Callable[..., None]) -> None:
    if not lens.model.structure.takes_position_ids:
        pytest.skip("takes no position ids")
    tokens, logits = lens.tokens(8), frozenset({Site.LOGITS})
    seen, renumbered = [1, 1, 0, 0, 1, 1, 1, 1], torch.tensor([[0, 1, 2, 2, 2, 3, 4, 5]])
    (past,), _ = read(
        lens.model, [None], [tokens[:5]], logits, masks=[seen[:5]], position_ids=renumbered[:, :5]
    )
    other, _ = read(lens.model, [None], [lens.tokens(7)], logits)
    _, found = read(
        lens.model,
        [past, *other],
        [tokens[5:], lens.tokens(3)],
        logits,
        masks=[seen, [1] * 10],
        position_ids=torch.cat([renumbered[:, 5:], torch.tensor([[7, 8, 9]])]),
    )
    shorter = tuple(t for t, s in zip(tokens, seen, strict=True) if s)
    close(found[0][Site.LOGITS], lens.capture(shorter, Site.LOGITS)[Site.LOGITS][3:])


def test_what_is_kept_of_few_lanes_gives_the_others_memory_back(lens_of: Any) -> None:
    lens = lens_of("llama")
    kept, _ = read(lens.model, [None] * 4, [lens.tokens(6, seed) for seed in range(4)], frozenset())
    assert settle(kept)[0] is kept[0]
    alone, again = settle([kept[2], kept[2]])
    assert alone is again
    assert alone.slab.nbytes * 4 == kept[2].slab.nbytes
    assert alone.nbytes == kept[2].nbytes == 6 * check_continuation(lens.model.structure).bytes_per_token


def test_a_model_without_position_ids_refuses_them_with_a_past_too(lens_of: Any) -> None:
    lens = lens_of("bloom")
    with pytest.raises(RequirementNotMet, match="takes no position ids"):
        read(lens.model, [None], [(5, 6)], frozenset(), position_ids=torch.tensor([[0, 1]]))


@pytest.mark.parametrize("fault", [torch.zeros(1), None], ids=["wrong", "failing"])
def test_a_model_that_cannot_read_on_is_found_out(fault: Tensor | None) -> None:
    """A layer that forgets its past, and one that fails with it; neither leaves a hook behind."""
    module = TINY["llama"]()
    model = inspect_model(module)

    def forget(attention: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if kwargs["past_key_values"] is None:
            return None
        if fault is None:
            raise KeyError("no such cache")
        return args, {**kwargs, "past_key_values": None}

    attention: Any = module.model.layers[1].self_attn
    handle = attention.register_forward_pre_hook(forget, with_kwargs=True)
    found = check_continuation(model.structure)
    handle.remove()
    assert not found
    assert found.problem
    assert hook_count(module) == 0
