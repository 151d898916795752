"""Heads against the sum written out, whether their layers are multiplied together or in runs."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lensd_api import Site, Stack
from lensd_dla import attention_split
from lensd_dla.attention_split import split_heads
from lensd_dla.pullback import freeze_read
from lensd_dla.scene import Scene
from plugins.dla.tests.test_pullback import HandNorm, HandWrite, numbers

POS, LAYERS, HEADS, HEAD_DIM, D = 3, 5, 2, 4, 6


@pytest.mark.parametrize("at_once", [1, 2 * POS, LAYERS * POS])
def test_a_head_is_its_write_along_the_direction(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_split, "_AT_ONCE", at_once)
    inputs = numbers(POS, LAYERS, HEADS, HEAD_DIM, seed=1)
    weights = numbers(LAYERS, HEADS, HEAD_DIM, D, seed=2)
    written = torch.einsum("plhe,lhed->plhd", inputs, weights)
    writes = [HandWrite(weight.flatten(0, 1), None, 1.0, None) for weight in weights]
    view: Any = SimpleNamespace(
        final_norm=HandNorm(False, numbers(D, seed=3), None), attention_write=writes.__getitem__
    )
    values = {Site.HEADS: inputs, Site.ATTN_WRITE: written.sum(2)}
    stack = Stack(values, [None], [tuple(range(POS))], [(0,) * POS], tuple(range(LAYERS)))
    read = freeze_read(numbers(POS, D, seed=4), numbers(POS, D, seed=5), view)
    found = split_heads(Scene(stack, view, read, top_k=0, direct_effect=False))
    assert torch.allclose(found["head"], torch.einsum("plhd,pd->plh", written, read.pulled))
    assert float(found["attn_gap"].max()) < 1e-12
