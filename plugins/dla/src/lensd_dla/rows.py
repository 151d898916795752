"""From readings to rows: one per component, whose values add up to the logit.

Works on columns: the numbers of one kind of component at all positions are one segment. And on
arrays, not tensors: torch hands the interpreter over at every operation, which costs more than the
arithmetic while another thread runs a forward.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float64, Shaped

from lensd_dla.plan import Part
from lensd_dla.reading import Array, Layout, Reading

#: Numbers that are the same at every position, or [pos, n] where they are not.
Numbers = Sequence[int | None] | Array


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Rows of one kind: ``values`` [pos, n]; ``source`` and ``effects`` likewise, where there are."""

    kind: str
    values: Float64[Array, "pos n"]
    layer: Numbers
    index: Numbers
    source: Array | None = None
    effects: Float64[Array, "pos n"] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PartReading:
    """A reading as arrays, and the layers it is of."""

    part: Part
    layout: Layout
    values: Float64[Array, "pos column"]
    sources: Float[Array, "pos layer head src"] | None

    def __contains__(self, name: str) -> bool:
        return name in self.layout

    def get(self, name: str) -> Shaped[Array, "pos ..."]:
        """Quantity ``name``."""
        return self.layout.take(self.values, name)


def as_arrays(part: Part, reading: Reading) -> PartReading:
    """``reading``, which is in host memory, without a copy."""
    sources = None if reading.sources is None else reading.sources.numpy()
    return PartReading(part, reading.layout, reading.values.numpy(), sources)


def build_segments(parts: Sequence[PartReading], top_k: int) -> list[Segment]:
    """Every row but ``rounding``, kind by kind, from the readings of all parts."""
    outside = parts[0]
    segments = [
        segment for name in ("embed", "pos_embed") if (segment := _constant(outside, name)) is not None
    ]
    for kind in ("block", "attn", "head", "attn_bias", "expert", "mlp", "mlp_bias"):
        # Heads are taken apart by source where those are asked for.
        segments += [_layered(kind, p) for p in parts if kind in p and not (kind == "head" and "source" in p)]
    for kind, totals in (("source", _head_totals), ("neuron", _neuron_totals)):
        chosen = [p for p in parts if kind in p]
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
    outside = parts[0]
    left = outside.get("seen") - outside.get("embed:exact")
    if "pos_embed" in outside:
        left = left - outside.get("pos_embed:exact")
    for p in parts:
        left = left - p.get("written")
    return Segment("rounding", left[:, None], [None], [None])


def logit_of(p: PartReading, name: str = "logit") -> Float64[Array, "pos"]:
    """The target's number, minus the contrast's where there is one."""
    value = p.get(name)
    return value - p.get(f"{name}:contrast") if f"{name}:contrast" in p else value


def _constant(p: PartReading, name: str) -> Segment | None:
    """Rows that belong to no layer."""
    if name not in p:
        return None
    effects = p.get(f"{name}:effect")[:, None] if f"{name}:effect" in p else None
    return Segment(name, logit_of(p, name)[:, None], [None], [None], effects=effects)


def _layered(kind: str, p: PartReading) -> Segment:
    """One row a layer, or one a layer and component within it."""
    values, layers = p.get(kind), p.part.layers
    effects = _flat(p.get(f"{kind}:effect")) if f"{kind}:effect" in p else None
    if values.ndim == 2:
        return Segment(kind, values, layers, [None] * len(layers), effects=effects)
    layer, index = _numbered(layers, values.shape[2])
    if f"{kind}_index" in p:
        index = _flat(p.get(f"{kind}_index")).astype(np.int64)
    return Segment(kind, _flat(values), layer, index, effects=effects)


@lru_cache(maxsize=32)
def _numbered(layers: tuple[int, ...], width: int) -> tuple[Numbers, Numbers]:
    """Layer and index of ``width`` components in each of ``layers``."""
    return tuple(layer for layer in layers for _ in range(width)), tuple(range(width)) * len(layers)


def _flat(numbers: Shaped[Array, "pos ..."]) -> Shaped[Array, "pos n"]:
    return numbers.reshape(len(numbers), -1)


def _head_totals(p: PartReading) -> Array:
    return p.get("head").sum(-1)


def _neuron_totals(p: PartReading) -> Array:
    return p.get("neuron_total")


def _largest(
    kind: str, parts: Sequence[PartReading], totals: Callable[[PartReading], Array], top_k: int
) -> list[Segment]:
    """The ``top_k`` rows over all parts, and one row ``rest`` a layer with what they leave out."""
    values = np.concatenate([p.get(kind) for p in parts], 1)
    places = np.concatenate([_global_places(p, kind) for p in parts], 1)
    layers = [layer for p in parts for layer in p.part.layers]
    magnitude = np.where(places[..., 0] >= 0, np.abs(values), -1.0)
    best = np.argsort(-magnitude, axis=1, kind="stable")[:, :top_k]
    values, places = np.take_along_axis(values, best, 1), np.take_along_axis(places, best[..., None], 1)
    effects = None
    if f"{kind}:effect" in parts[0]:
        effects = np.take_along_axis(np.concatenate([p.get(f"{kind}:effect") for p in parts], 1), best, 1)
    whole = np.concatenate([totals(p) for p in parts], 1)
    # Chosen rows are taken off their layer's total; column `layer + 1` so that -1 has a place too.
    taken = np.zeros((len(values), max(layers) + 2))
    np.add.at(taken, (np.arange(len(values))[:, None], places[..., 0] + 1), values)
    rest = Segment("rest", whole - taken[:, [layer + 1 for layer in layers]], layers, [None] * len(layers))
    source = places[..., 2] if kind == "source" else None
    # A source row is a part of its head's row.
    named = "head" if kind == "source" else kind
    return [Segment(named, values, places[..., 0], places[..., 1], source, effects), rest]


def _global_places(p: PartReading, kind: str) -> Array:
    """Places with the model's layer numbers in place of the part's; -1 stays."""
    place = p.get(f"{kind}_place").astype(np.int64)
    numbers = np.array([*p.part.layers, -1])
    return np.concatenate([numbers[place[..., :1]], place[..., 1:]], -1)
