"""The MLP's contribution by neuron and by routed expert."""

import torch
from torch import Tensor

from lensd_api import Site
from lensd_dla.pullback import FrozenWrite, freeze_write, widen
from lensd_dla.scene import Quantities, Scene, places_by_layer, stack_layers


def split_neurons(scene: Scene) -> Quantities:
    """activation * (its column of the down-projection . direction), the largest ``top_k`` only.

    ``neuron`` [pos, k], ``neuron_place`` [pos, k, 2] (layer, neuron), ``neuron_total``
    [pos, layer] over all neurons, ``mlp_bias`` [pos, layer], ``mlp_gap``: what they miss.
    """
    values: list[Tensor] = []
    places: list[Tensor] = []
    totals: list[Tensor] = []
    biases: list[Tensor | None] = []
    for number in range(len(scene.stack.layers)):
        inputs, write = _frozen(scene, number)
        each = (write.pulled @ widen(write.write.weight).T) * inputs
        totals.append(each.sum(-1))
        biases.append(write.bias)
        # Candidates layer by layer, so that all layers' neurons never exist at once.
        _, index = each.abs().topk(min(scene.top_k, each.shape[1]), dim=1)
        values.append(each.gather(1, index))
        places.append(torch.stack([torch.full_like(index, number), index], -1))
    candidates, place = torch.cat(values, 1), torch.cat(places, 1)
    _, best = candidates.abs().topk(min(scene.top_k, candidates.shape[1]), dim=1)
    found: Quantities = {
        "neuron": candidates.gather(1, best),
        "neuron_place": place.gather(1, best[..., None].expand(-1, -1, 2)),
        "neuron_total": torch.stack(totals, 1),
    }
    found |= stack_layers("mlp_bias", biases)
    if scene.direct_effect:
        found |= _effects(scene, found["neuron_place"])
    total = found["neuron_total"] + found.get("mlp_bias", 0.0)
    found["mlp_gap"] = (total - scene.project(Site.MLP_WRITE)).abs()
    return found


def split_experts(scene: Scene) -> Quantities:
    """``expert`` and ``expert_index`` [pos, layer, slot]: router weight times expert output."""
    writes = scene.stack.values[Site.EXPERT_WRITES]
    layers = range(len(scene.stack.layers))
    each = [torch.einsum("psd,pd->ps", widen(writes[:, i]), scene.read.pulled) for i in layers]
    found: Quantities = {
        "expert": torch.stack(each, 1),
        "expert_index": scene.stack.values[Site.EXPERT_IDS],
    }
    if scene.direct_effect:
        found["expert:effect"] = torch.stack([scene.read.effects(widen(writes[:, i])) for i in layers], 1)
    found["mlp_gap"] = (found["expert"].sum(-1) - scene.project(Site.MLP_WRITE)).abs()
    return found


def _frozen(scene: Scene, number: int) -> tuple[Tensor, FrozenWrite]:
    inputs = scene.stack.values[Site.NEURONS][:, number]
    write = scene.view.mlp_write(scene.stack.layers[number])
    return inputs, freeze_write(scene.read, write, inputs)


def _effects(scene: Scene, place: Tensor) -> Quantities:
    effects = torch.zeros(place.shape[:2], device=place.device, dtype=scene.read.pulled.dtype)
    layers = [_frozen(scene, number) for number in range(len(scene.stack.layers))]
    biases = [
        None if write.bias is None else scene.read.effects(write.bias_written())[:, 0] for _, write in layers
    ]
    for number, pos, k in places_by_layer(scene, place):
        inputs, write = layers[number]
        neuron = place[pos, k, 1]
        raw = widen(write.write.weight)[neuron] * inputs[pos, neuron][:, None]
        effects[pos, k] = scene.read.at(pos).effects(write.at(pos).written(raw[:, None]))[:, 0]
    return {"neuron:effect": effects} | stack_layers("mlp_bias:effect", biases)
