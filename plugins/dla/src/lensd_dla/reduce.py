"""The whole computation on the model's device, once per batch.

A frozen dataclass, not a function, so that rows which ask for the same options, and only those,
share a call: the engine compares what is to be called with ``==``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lensd_api import ModelView, Site, Stack, Unit
from lensd_dla.attention_split import split_heads, split_sources
from lensd_dla.mlp_split import split_experts, split_neurons
from lensd_dla.pullback import freeze_read, widen
from lensd_dla.reading import Reading, pack
from lensd_dla.readout import ReadOut
from lensd_dla.scene import Quantities, Scene

_NONE = -1


@dataclass(frozen=True, slots=True)
class Attribute:
    """Attributes each row's read-out to the captured layers; ``first`` adds what is in no layer.

    ``top_k`` and ``lens_top_k`` are 0 where they play no part.
    """

    unit: Unit
    first: bool
    top_k: int = 0
    direct_effect: bool = False
    lens_top_k: int = 0

    def __call__(self, stack: Stack, view: ModelView) -> list[Reading]:
        read_outs: Sequence[ReadOut] = stack.args
        targets, contrasts = _tokens(stack, view, read_outs)
        direction = _directions(stack, view, targets, contrasts)
        read = freeze_read(stack.values[Site.FINAL_RESIDUAL], direction, view)
        scene = Scene(stack, view, read, self.top_k, self.direct_effect)
        found, sources = self._split(scene)
        found["written"] = _written(scene, self.unit)
        if self.first:
            found |= _outside_layers(scene, targets, contrasts)
        if self.lens_top_k:
            found |= _lens(scene, self.lens_top_k)
        return pack(found, stack, sources)

    def _split(self, scene: Scene) -> tuple[Quantities, list[Tensor] | None]:
        sources = None
        match self.unit:
            case Unit.BLOCK:
                return _whole(scene, "block", Site.BLOCK_OUT, minus=Site.BLOCK_IN), None
            case Unit.SOURCE:
                found, sources = split_sources(scene)
            case Unit.HEAD:
                found = split_heads(scene)
            case _:
                found = _whole(scene, "attn", Site.ATTN_WRITE)
        match self.unit:
            case Unit.NEURON:
                found |= split_neurons(scene)
            case Unit.EXPERT:
                found |= split_experts(scene)
            case _:
                found |= _whole(scene, "mlp", Site.MLP_WRITE)
        return found, sources


def _whole(scene: Scene, name: str, site: Site, minus: Site | None = None) -> Quantities:
    values = scene.stack.values
    writes = widen(values[site]) if minus is None else widen(values[site]) - widen(values[minus])
    found = {name: torch.einsum("pld,pd->pl", writes, scene.read.pulled)}
    if scene.direct_effect:
        found[f"{name}:effect"] = scene.read.effects(writes)
    return found


def _written(scene: Scene, unit: Unit) -> Float[Tensor, "pos"]:
    """Everything the captured layers were seen to write, along the direction, in fp64.

    From the writes themselves, never from the rows: what a wrong split loses must show.
    """
    values = scene.stack.values
    if unit is Unit.BLOCK:
        total = (values[Site.BLOCK_OUT].double() - values[Site.BLOCK_IN].double()).sum(1)
    else:
        total = values[Site.ATTN_WRITE].sum(1, dtype=torch.float64)
        total = total + values[Site.MLP_WRITE].sum(1, dtype=torch.float64)
    return _along(scene, total)


def _along(scene: Scene, vector: Float[Tensor, "pos d_model"]) -> Float[Tensor, "pos"]:
    return (vector.double() * scene.read.pulled.double()).sum(-1)


def _outside_layers(scene: Scene, targets: Tensor, contrasts: Tensor) -> Quantities:
    """Embeddings, constants, the stream as the final norm saw it, and the model's own logit."""
    values, read = scene.stack.values, scene.read
    found: Quantities = {"target": targets, "seen": _along(scene, read.residual)}
    for name, site in (("embed", Site.EMBED), ("pos_embed", Site.POS_EMBED)):
        if site in values:
            write = widen(values[site])
            found[name] = (write * read.pulled).sum(-1)
            found[f"{name}:exact"] = _along(scene, write)
            if scene.direct_effect:
                found[f"{name}:effect"] = read.effects(write[:, None])[:, 0]
    if read.constant is not None:
        found["norm_bias"] = read.constant
    if Site.RAW_LOGITS not in values:
        # A direction that is no token has no logit of the model's own: read it out of the norm.
        constant = 0.0 if read.constant is None else read.constant.double()
        return found | {"logit": found["seen"] + constant}
    found |= _of_tokens("logit", values[Site.RAW_LOGITS], targets, contrasts)
    if (bias := scene.view.unembed_bias) is not None:
        found |= _of_tokens("unembed_bias", bias.expand(len(targets), -1), targets, contrasts)
    return found


def _of_tokens(
    name: str, table: Float[Tensor, "pos vocab"], targets: Tensor, contrasts: Tensor
) -> Quantities:
    """``name`` of the target, and ``name:contrast``, which is 0 where there is no contrast."""
    contrast = table.gather(1, contrasts.clamp(min=0)[:, None])[:, 0]
    return {
        name: table.gather(1, targets[:, None])[:, 0],
        f"{name}:contrast": contrast.masked_fill(contrasts == _NONE, 0.0),
    }


def _tokens(stack: Stack, view: ModelView, read_outs: Sequence[ReadOut]) -> tuple[Tensor, Tensor]:
    """Target and contrast at every position; ``_NONE`` where a direction or nothing is given."""
    chosen: list[int] = []
    contrasts: list[int] = []
    default: list[bool] = []
    for read_out, positions in zip(read_outs, stack.positions, strict=True):
        target, count = read_out.target, len(positions)
        chosen += target if isinstance(target, tuple) else [_NONE if target is None else target] * count
        contrasts += [_NONE if read_out.contrast is None else read_out.contrast] * count
        default += [target is None and read_out.direction is None] * count
    targets = view.upload(chosen)
    if any(default):
        top = stack.values[Site.RAW_LOGITS].argmax(-1)
        targets = torch.where(view.upload(default), top, targets)
    return targets, view.upload(contrasts)


def _directions(
    stack: Stack, view: ModelView, targets: Tensor, contrasts: Tensor
) -> Float[Tensor, "pos d_model"]:
    """The read-out after the final norm: rows of the unembedding, their difference, or as given."""
    direction = widen(view.unembed[targets.clamp(min=0)])
    contrast = widen(view.unembed[contrasts.clamp(min=0)])
    direction = direction - contrast * (contrasts != _NONE)[:, None]
    for row, read_out in enumerate(stack.args):
        if read_out.direction is not None:
            direction[stack.slice_of(row)] = view.upload(read_out.direction)
    return direction


def _lens(scene: Scene, top_k: int) -> Quantities:
    """The stream after each layer through final norm and head: the ``top_k`` tokens.

    ``lens``, ``lens_token`` and ``lens_probability`` [pos, layer, k]. Each layer is normed by its
    own statistics, as the model would have, had it stopped there.
    """
    found: dict[str, list[Tensor]] = {"lens": [], "lens_token": [], "lens_probability": []}
    for number in range(len(scene.stack.layers)):
        logits = widen(scene.view.logits(scene.stack.values[Site.BLOCK_OUT][:, number]))
        best, token = logits.topk(top_k, dim=-1)
        found["lens"].append(best)
        found["lens_token"].append(token)
        found["lens_probability"].append((best - logits.logsumexp(-1, keepdim=True)).exp())
    return {name: torch.stack(layers, 1) for name, layers in found.items()}
