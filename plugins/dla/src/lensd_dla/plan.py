"""Which captures an analysis needs: units per layer, sites, and groups of bounded size.

Pure: follows from the parameters and the model's anatomy alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lensd_api import Anatomy, LayerAnatomy, Site, Unit
from lensd_dla.params import DlaParams

#: What a layer that does not offer a unit gives in its place.
COARSER = {
    Unit.SOURCE: Unit.HEAD,
    Unit.HEAD: Unit.COMPONENT,
    Unit.NEURON: Unit.COMPONENT,
    Unit.EXPERT: Unit.COMPONENT,
    Unit.COMPONENT: Unit.BLOCK,
}

#: Captures of one analysis that may be on the device at a time.
CAPTURE_BUDGET_BYTES = 64 * 2**20

_COMPONENTS = frozenset({Site.ATTN_WRITE, Site.MLP_WRITE})
_SITES = {
    Unit.BLOCK: frozenset({Site.BLOCK_IN, Site.BLOCK_OUT}),
    Unit.COMPONENT: _COMPONENTS,
    Unit.HEAD: _COMPONENTS | {Site.HEADS},
    Unit.NEURON: _COMPONENTS | {Site.NEURONS},
    Unit.EXPERT: _COMPONENTS | {Site.EXPERT_WRITES, Site.EXPERT_IDS},
    Unit.SOURCE: _COMPONENTS | {Site.HEADS, Site.ATTENTION, Site.VALUES},
}
_ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
#: Experts a token is routed to are not part of the anatomy; few models use more.
_MOST_SLOTS = 8


@dataclass(frozen=True, slots=True)
class Part:
    """Layers whose captures come from one forward pass because they are split alike.

    The first part also reads what is not in a layer: embeddings, logit, constants.
    """

    unit: Unit
    layers: tuple[int, ...]
    sites: frozenset[Site]
    first: bool


def unit_offered(layer: LayerAnatomy, asked: Unit) -> Unit:
    """``asked``, or the finest unit above it that ``layer`` offers; blocks always are."""
    unit = asked
    while unit not in layer.units and unit is not Unit.BLOCK:
        unit = COARSER[unit]
    return unit


def plan_parts(params: DlaParams, anatomy: Anatomy, longest: int) -> tuple[Part, ...]:
    """Layers grouped by the unit they are split into; one part for most models.

    ``longest`` is the length of the longest row: values at all its positions are captured for
    source tokens, so that layers of a long row may need several parts.
    """
    by_unit: dict[Unit, list[int]] = {}
    for index, layer in enumerate(anatomy.layers):
        by_unit.setdefault(unit_offered(layer, params.unit), []).append(index)
    runs = [(unit, run) for unit, layers in by_unit.items() for run in _runs(unit, layers, anatomy, longest)]
    return tuple(
        Part(unit, tuple(layers), _sites(unit, params, anatomy, first=i == 0), first=i == 0)
        for i, (unit, layers) in enumerate(runs)
    )


def _runs(unit: Unit, layers: list[int], anatomy: Anatomy, longest: int) -> Iterator[list[int]]:
    size = len(layers)
    if unit is Unit.SOURCE:
        layer_bytes = 4 * longest * anatomy.n_heads * anatomy.head_dim
        size = max(1, CAPTURE_BUDGET_BYTES // layer_bytes)
    for start in range(0, len(layers), size):
        yield layers[start : start + size]


def _sites(unit: Unit, params: DlaParams, anatomy: Anatomy, *, first: bool) -> frozenset[Site]:
    sites = _SITES[unit] | {Site.FINAL_RESIDUAL}
    if first:
        sites |= {Site.EMBED}
        if anatomy.has_pos_embed:
            sites |= {Site.POS_EMBED}
        if params.direction is None:
            sites |= {Site.RAW_LOGITS}
    if params.lens:
        sites |= {Site.BLOCK_OUT}
    return sites


def position_bytes(part: Part, anatomy: Anatomy, dtype: str, length: int) -> int:
    """Device memory that the captures of one position of a row of ``length`` take."""
    d_model, layers = anatomy.d_model, len(part.layers)
    sizes = {
        Site.RAW_LOGITS: anatomy.vocab_size,
        Site.HEADS: layers * anatomy.n_heads * anatomy.head_dim,
        Site.NEURONS: layers * anatomy.d_mlp,
        Site.EXPERT_WRITES: layers * d_model * min(anatomy.n_experts, _MOST_SLOTS),
        Site.EXPERT_IDS: layers * min(anatomy.n_experts, _MOST_SLOTS),
        Site.ATTENTION: layers * anatomy.n_heads * length,
        Site.VALUES: 0,  # a row's, not a position's
        Site.EMBED: d_model,
        Site.POS_EMBED: d_model,
        Site.FINAL_RESIDUAL: d_model,
    }
    elements = sum(sizes.get(site, layers * d_model) for site in part.sites)
    return elements * _ITEM_BYTES.get(dtype, 4)


def group_positions(positions: Sequence[int], bytes_each: int) -> list[tuple[int, ...]]:
    """``positions`` in order, in groups whose captures fit the budget."""
    size = max(1, CAPTURE_BUDGET_BYTES // max(bytes_each, 1))
    return [tuple(positions[start : start + size]) for start in range(0, len(positions), size)]


def degradations(anatomy: Anatomy, asked: Unit) -> Iterator[str]:
    """Sentences that say which layers give coarser rows than asked, and why."""
    by_reason: dict[tuple[Unit, str], list[int]] = {}
    for index, layer in enumerate(anatomy.layers):
        given = unit_offered(layer, asked)
        if given is not asked:
            why = layer.refused.get(asked, "the model does not offer it")
            by_reason.setdefault((given, why), []).append(index)
    for (given, why), layers in by_reason.items():
        which = "every layer" if len(layers) == anatomy.n_layers else f"layers {layers}"
        yield f"{which} gives {given.value} rows in place of {asked.value} rows: {why}"
