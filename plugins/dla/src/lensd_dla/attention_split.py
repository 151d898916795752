"""Attention's contribution by head, and by head and source token.

The direction is contracted with the output projection first: memory is O(pos * head), the
residual vectors of single heads exist one layer at a time and only for their direct effect.
"""

from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from lensd_api import Site
from lensd_dla.pullback import FrozenWrite, freeze_write, widen
from lensd_dla.scene import Quantities, Scene, places_by_layer, stack_layers

#: Positions times layers that are multiplied in one operation: few positions do not pay for one a layer, and
#: many would only take more memory.
_AT_ONCE = 256


def split_heads(scene: Scene) -> Quantities:
    """``head`` [pos, layer, head], ``attn_bias`` [pos, layer], ``attn_gap``: what they miss."""
    writes = _writes(scene)
    return _by_head(scene, writes, _pulled(scene, writes))


def _by_head(
    scene: Scene, writes: Sequence[FrozenWrite], pulled: Iterable[Float[Tensor, "pos _run head head_dim"]]
) -> Quantities:
    inputs = scene.stack.values[Site.HEADS]
    runs = zip(pulled, torch.split(inputs, _run_length(scene), 1), strict=True)
    found: Quantities = {"head": torch.cat([(own * given).sum(-1) for own, given in runs], 1)}
    found |= stack_layers("attn_bias", [write.bias for write in writes])
    if scene.direct_effect:
        effects = [
            scene.read.effects(write.written(_raw_writes(write, inputs[:, number])))
            for number, write in enumerate(writes)
        ]
        found["head:effect"] = torch.stack(effects, 1)
        biased = [
            None if write.bias is None else scene.read.effects(write.bias_written())[:, 0] for write in writes
        ]
        found |= stack_layers("attn_bias:effect", biased)
    total = found["head"].sum(-1) + found.get("attn_bias", 0.0)
    found["attn_gap"] = (total - scene.project(Site.ATTN_WRITE)).abs()
    return found


def split_sources(scene: Scene) -> tuple[Quantities, list[Tensor]]:
    """What :func:`split_heads` gives and, per row, every head by source token.

    contribution[h, t, s] = weight[h, t, s] * (value[h, s] . (W_O^h u_t)); summed over s it is the
    head's. Beside the full tensors [pos, layer, head, src]: ``source`` [pos, k] and
    ``source_place`` [pos, k, 3] (layer, head, src), the k largest; places beyond the
    position itself, where attention cannot look, are -1.
    """
    writes = _writes(scene)
    each = list(_pulled(scene, writes))
    found, pulled = _by_head(scene, writes, each), torch.cat(each, 1)
    rows: list[Tensor] = [
        _by_source(scene, row, pulled[scene.stack.slice_of(row)]) for row in range(len(scene.stack))
    ]
    chosen = [_largest(scene, row, sources) for row, sources in enumerate(rows)]
    found["source"] = torch.cat([values for values, _ in chosen])
    found["source_place"] = torch.cat([place for _, place in chosen])
    summed = torch.cat([sources.sum(-1) for sources in rows])
    found["attn_gap"] = torch.maximum(found["attn_gap"], (summed - found["head"]).abs().amax(-1))
    if scene.direct_effect:
        found["source:effect"] = _source_effects(scene, writes, found["source_place"])
    return found, rows


def _writes(scene: Scene) -> list[FrozenWrite]:
    """How attention writes in each layer."""
    inputs = scene.stack.values[Site.HEADS].flatten(2).unbind(1)
    return [
        freeze_write(scene.read, scene.view.attention_write(layer), own)
        for layer, own in zip(scene.stack.layers, inputs, strict=True)
    ]


def _pulled(scene: Scene, writes: Sequence[FrozenWrite]) -> Iterator[Float[Tensor, "pos _run head head_dim"]]:
    """The direction as the input of each head sees it, in runs of layers."""
    heads, length = scene.stack.values[Site.HEADS].shape[2:], _run_length(scene)
    for start in range(0, len(writes), length):
        run = writes[start : start + length]
        pulled = [write.pulled @ widen(write.write.weight).T for write in run]
        yield torch.stack(pulled, 1).view(-1, len(run), *heads)


def _run_length(scene: Scene) -> int:
    return max(1, _AT_ONCE // len(scene.read.pulled))


def _raw_writes(
    write: FrozenWrite, inputs: Float[Tensor, "pos head head_dim"]
) -> Float[Tensor, "pos head d_model"]:
    weight = widen(write.write.weight)
    return torch.einsum("phe,hed->phd", widen(inputs), weight.view(*inputs.shape[1:], -1))


def _by_source(
    scene: Scene, row: int, pulled: Float[Tensor, "pos layer head head_dim"]
) -> Float[Tensor, "pos layer head src"]:
    here, there = scene.stack.slice_of(row), scene.stack.src_slice_of(row)
    values = widen(scene.stack.values[Site.VALUES][there])
    attention = scene.stack.values[Site.ATTENTION][here, ..., : len(values)]
    return torch.einsum("plhe,slhe->plhs", pulled, values) * attention


def _largest(scene: Scene, row: int, sources: Float[Tensor, "pos layer head src"]) -> tuple[Tensor, Tensor]:
    """The ``top_k`` of each position by magnitude, and where they are; short rows are filled up."""
    _, layers, heads, length = sources.shape
    positions = scene.view.upload(scene.stack.positions[row])
    seen = torch.arange(length, device=sources.device) <= positions[:, None]
    magnitude = sources.abs().masked_fill(~seen[:, None, None], -1.0).flatten(1)
    count = min(scene.top_k, layers * heads * length)
    ranked, flat = magnitude.topk(count, dim=1)
    values = sources.flatten(1).gather(1, flat)
    place = torch.stack([flat // (heads * length), flat // length % heads, flat % length], -1)
    hidden = ranked < 0
    place, values = place.masked_fill(hidden[..., None], -1), values.masked_fill(hidden, 0.0)
    missing = scene.top_k - count
    return (
        torch.nn.functional.pad(values, (0, missing)),
        torch.nn.functional.pad(place, (0, 0, 0, missing), value=-1),
    )


def _source_effects(scene: Scene, writes: Sequence[FrozenWrite], place: Tensor) -> Float[Tensor, "pos k"]:
    effects = torch.zeros(place.shape[:2], device=place.device, dtype=scene.read.pulled.dtype)
    begins = [scene.stack.src_slice_of(row).start for row in range(len(scene.stack))]
    starts = scene.view.upload(
        [start for start, own in zip(begins, scene.stack.positions, strict=True) for _ in own]
    )
    heads = scene.stack.values[Site.HEADS].shape[2:]
    for number, pos, k in places_by_layer(scene, place):
        write = writes[number]
        head, src = place[pos, k, 1], place[pos, k, 2]
        values = scene.stack.values[Site.VALUES][starts[pos] + src, number, head]
        weights = scene.stack.values[Site.ATTENTION][pos, number, head, src]
        # One head's slot of an otherwise empty input: the projection's weight is never copied.
        alone = torch.zeros(len(pos), *heads, device=place.device, dtype=effects.dtype)
        alone[torch.arange(len(pos), device=place.device), head] = widen(values) * weights[:, None]
        raw = alone.flatten(1) @ widen(write.write.weight)
        effects[pos, k] = scene.read.at(pos).effects(write.at(pos).written(raw[:, None]))[:, 0]
    return effects
