"""From readings to rows: one per component, whose values add up to the logit.

Works on columns: the numbers of one kind of component at all positions are one segment.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from lensd_dla.plan import Part
from lensd_dla.reading import Reading

#: Numbers that are the same at every position, or [pos, n] where they are not.
Numbers = Sequence[int | None] | Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Rows of one kind: ``values`` [pos, n]; ``source`` and ``effects`` likewise, where there are."""

    kind: str
    values: Float64[Tensor, "pos n"]
    layer: Numbers
    index: Numbers
    source: Tensor | None = None
    effects: Float64[Tensor, "pos n"] | None = None


@dataclass(frozen=True, slots=True)
class PartReading:
    """A reading and the layers it is of."""

    part: Part
    reading: Reading


def build_segments(parts: Sequence[PartReading], top_k: int) -> list[Segment]:
    """Every row but ``rounding``, kind by kind, from the readings of all parts."""
    outside = parts[0].reading
    segments = [
        segment for name in ("embed", "pos_embed") if (segment := _constant(outside, name)) is not None
    ]
    for kind in ("block", "attn", "head", "attn_bias", "expert", "mlp", "mlp_bias"):
        # Heads are taken apart by source where those are asked for.
        segments += [
            _layered(kind, p)
            for p in parts
            if kind in p.reading and not (kind == "head" and "source" in p.reading)
        ]
    for kind, totals in (("source", _head_totals), ("neuron", _neuron_totals)):
        chosen = [p for p in parts if kind in p.reading]
        if chosen:
            segments += _largest(kind, chosen, totals, top_k)
    segments += [
        segment for name in ("norm_bias", "unembed_bias") if (segment := _constant(outside, name)) is not None
    ]
    return segments


def rounding_segment(parts: Sequence[PartReading]) -> Segment:
    """What the writes that were seen leave of the stream that was seen, along the direction.

    Never the logit minus the rows: that would make any rows add up.
    """
    outside = parts[0].reading
    left = outside.get("seen") - outside.get("embed:exact")
    if "pos_embed" in outside:
        left = left - outside.get("pos_embed:exact")
    for p in parts:
        left = left - p.reading.get("written")
    return Segment("rounding", left[:, None], [None], [None])


def logit_of(reading: Reading, name: str = "logit") -> Float64[Tensor, "pos"]:
    """The target's number, minus the contrast's where there is one."""
    value = reading.get(name)
    return value - reading.get(f"{name}:contrast") if f"{name}:contrast" in reading else value


def _constant(reading: Reading, name: str) -> Segment | None:
    """Rows that belong to no layer."""
    if name not in reading:
        return None
    effects = reading.get(f"{name}:effect")[:, None] if f"{name}:effect" in reading else None
    return Segment(name, logit_of(reading, name)[:, None], [None], [None], effects=effects)


def _layered(kind: str, p: PartReading) -> Segment:
    """One row a layer, or one a layer and component within it."""
    values, layers = p.reading.get(kind), p.part.layers
    effects = p.reading.get(f"{kind}:effect").flatten(1) if f"{kind}:effect" in p.reading else None
    if values.ndim == 2:
        return Segment(kind, values, list(layers), [None] * len(layers), effects=effects)
    width = values.shape[2]
    layer = [number for number in layers for _ in range(width)]
    index = list(range(width)) * len(layers)
    if f"{kind}_index" in p.reading:
        index = p.reading.get(f"{kind}_index").flatten(1).long()
    return Segment(kind, values.flatten(1), layer, index, effects=effects)


def _head_totals(reading: Reading) -> Tensor:
    return reading.get("head").sum(-1)


def _neuron_totals(reading: Reading) -> Tensor:
    return reading.get("neuron_total")


def _largest(
    kind: str, parts: Sequence[PartReading], totals: Callable[[Reading], Tensor], top_k: int
) -> list[Segment]:
    """The ``top_k`` rows over all parts, and one row ``rest`` a layer with what they leave out."""
    values = torch.cat([p.reading.get(kind) for p in parts], 1)
    places = torch.cat([_global_places(p, kind) for p in parts], 1)
    layers = [layer for p in parts for layer in p.part.layers]
    found = places[..., 0] >= 0
    _, best = values.abs().masked_fill(~found, -1.0).topk(min(top_k, values.shape[1]), dim=1)
    values, places = values.gather(1, best), places.gather(1, best[..., None].expand(-1, -1, places.shape[2]))
    effects = None
    if f"{kind}:effect" in parts[0].reading:
        effects = torch.cat([p.reading.get(f"{kind}:effect") for p in parts], 1).gather(1, best)
    whole = torch.cat([totals(p.reading) for p in parts], 1)
    # Chosen rows are taken off their layer's total; column `layer + 1` so that -1 has a place too.
    taken = torch.zeros(len(values), max(layers) + 2, dtype=values.dtype)
    taken.scatter_add_(1, places[..., 0] + 1, values)
    rest = Segment("rest", whole - taken[:, [layer + 1 for layer in layers]], layers, [None] * len(layers))
    source = places[..., 2] if kind == "source" else None
    # A source row is a part of its head's row.
    named = "head" if kind == "source" else kind
    return [Segment(named, values, places[..., 0], places[..., 1], source, effects), rest]


def _global_places(p: PartReading, kind: str) -> Tensor:
    """Places with the model's layer numbers in place of the part's; -1 stays."""
    place = p.reading.get(f"{kind}_place").long()
    numbers = torch.tensor([*p.part.layers, -1])
    return torch.cat([numbers[place[..., :1]], place[..., 1:]], -1)
