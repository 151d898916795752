"""A model is bit for bit the same after a capture, also one that failed."""

import hashlib

import pytest
import torch
from torch import nn

from lensd_api import Site
from lensd_server.engine.anatomy.hooks import count_hooks
from lensd_server.engine.anatomy.inspect import inspect_model
from lensd_server.tiny_models import TINY

ALL_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")


def digest(module: nn.Module) -> str:
    sha = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        sha.update(name.encode())
        sha.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def hook_count(module: nn.Module) -> int:
    return sum(len(getattr(inner, name)) for inner in module.modules() for name in ALL_HOOKS)


def logits_of(module: nn.Module, tokens: tuple[int, ...]) -> torch.Tensor:
    with torch.inference_mode():
        return module(torch.tensor([tokens]), use_cache=False).logits


def everything(lens):
    units = lens.model.anatomy.units
    sites = set(Site)
    if "source" not in units:
        sites -= {Site.ATTENTION, Site.VALUES}
    lacking = {Site.NEURONS} if "expert" in units else {Site.EXPERT_WRITES, Site.EXPERT_IDS}
    return sites - lacking


def test_every_kind_of_hook_is_counted():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].register_forward_hook(lambda *_: None)
    module[0].register_forward_pre_hook(lambda *_: None)
    module.register_full_backward_hook(lambda *_: None)
    assert count_hooks(module) == 3


@pytest.mark.parametrize("name", sorted(TINY))
def test_inspection_changes_neither_weights_nor_logits(name):
    module = TINY[name]()
    tokens = tuple(range(3, 15))
    weights, logits = digest(module), logits_of(module, tokens)
    inspect_model(module)
    assert digest(module) == weights
    assert hook_count(module) == count_hooks(module) == 0
    assert torch.equal(logits_of(module, tokens), logits)


def test_capturing_everything_changes_neither_weights_nor_logits(lens):
    module, tokens = lens.model.module, lens.tokens(10)
    # transformers leaves hooks of its own behind where another test asked for hidden states.
    weights, logits, hooks = digest(module), logits_of(module, tokens), hook_count(module)
    lens.capture(tokens, *everything(lens))
    assert digest(module) == weights
    assert hook_count(module) == hooks
    assert torch.equal(logits_of(module, tokens), logits)


def test_captures_share_no_memory_with_the_weights(lens):
    addresses = {p.untyped_storage().data_ptr() for p in lens.model.module.parameters()}
    kept = lens.capture(lens.tokens(6), *everything(lens))
    assert not addresses & {t.untyped_storage().data_ptr() for t in kept.values()}


def test_a_forward_that_fails_leaves_no_hooks(lens, monkeypatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the device is gone")

    tokens, hooks = lens.tokens(6), hook_count(lens.model.module)
    before = lens.capture(tokens, Site.LOGITS)[Site.LOGITS]
    with monkeypatch.context() as patch:
        patch.setattr(lens.model.structure.skeleton.blocks[1], "forward", fail)
        with pytest.raises(RuntimeError, match="the device is gone"):
            lens.capture(tokens, *everything(lens))
    assert hook_count(lens.model.module) == hooks
    assert torch.equal(lens.capture(tokens, Site.LOGITS)[Site.LOGITS], before)


def test_the_head_sees_asked_positions_only(lens):
    seen: list[torch.Size] = []
    head = lens.model.structure.skeleton.head
    handle = head.register_forward_hook(lambda _, args, output: seen.append(output.shape))
    rows = [lens.tokens(9, 1), lens.tokens(12, 2)]
    vocab = lens.model.anatomy.vocab_size
    try:
        last = lens.group(Site.HEADS, rows=(9, 12))
        lens.run(rows, [last])
        asked = [[8], [11, 3]]
        group = type(last)(frozenset({Site.LOGITS}), (), (0, 1), tuple(map(tuple, asked)))
        lens.run(rows, [group, group])
    finally:
        handle.remove()
    assert seen == [(1, 1, vocab), (1, 3, vocab)]
