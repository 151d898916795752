"""What every block offers: each unit is granted by an identity that held, or refused with the reason."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from lensd_api import LayerAnatomy, Unit
from lensd_server.engine.anatomy.experts import RoutedExperts
from lensd_server.engine.anatomy.identity import deviation, tolerance
from lensd_server.engine.anatomy.probe import BlockTrace, Trace
from lensd_server.engine.anatomy.readout import ReadOut
from lensd_server.engine.anatomy.skeleton import Skeleton
from lensd_server.engine.anatomy.sublayers import BlockSplit, NoSplit, SubLayer, split_block


@dataclass(frozen=True, slots=True)
class Layer:
    """A block with the parts that its granted units need."""

    block: nn.Module
    anatomy: LayerAnatomy
    attention: SubLayer | None = None
    mlp: SubLayer | None = None
    experts: RoutedExperts | None = None


@dataclass(slots=True)
class _Findings:
    """Units granted and refused so far."""

    errors: dict[Unit, float] = field(default_factory=dict[Unit, float])
    refused: dict[Unit, str] = field(default_factory=dict[Unit, str])

    def judge(self, unit: Unit, error: float, limit: float, identity: str) -> None:
        if error <= limit:
            self.errors[unit] = error
        else:
            self.refused[unit] = f"{identity} is off by {error:.1e} (tolerance {limit:.0e})"

    def anatomy(self) -> LayerAnatomy:
        return LayerAnatomy(frozenset(self.errors), self.refused, self.errors)


def derive_layers(skeleton: Skeleton, trace: Trace, read_out: ReadOut) -> tuple[Layer, ...]:
    """Finds and checks the parts of every block; :attr:`Unit.SOURCE` is left for later."""
    nexts = [following.entry for following in trace.blocks[1:]]
    nexts.append(trace.blocks[-1].exit)
    layers: list[Layer] = []
    kinds = getattr(skeleton.config, "layer_types", None) or [""] * len(nexts)
    for block, following, kind in zip(trace.blocks, nexts, kinds, strict=True):
        if read_out.problem:
            layers.append(Layer(block.block, _nothing(read_out.problem)))
            continue
        error = deviation(block.exit, following)
        layers.append(_derive_layer(skeleton, block, error, str(kind)))
    return _uniform(layers)


def grant_source(layer: Layer, error: float, limit: float) -> Layer:
    """``layer`` with :attr:`Unit.SOURCE` granted or refused by ``error`` of its identity."""
    anatomy = layer.anatomy
    if Unit.HEAD not in anatomy.units:
        return refuse(layer, Unit.SOURCE, "heads are not offered")
    if not error <= limit:
        identity = "attention weights times values, against the head outputs,"
        return refuse(layer, Unit.SOURCE, f"{identity} is off by {error:.1e} (tolerance {limit:.0e})")
    granted = replace(
        anatomy,
        units=anatomy.units | {Unit.SOURCE},
        max_error={**anatomy.max_error, Unit.SOURCE: error},
    )
    return replace(layer, anatomy=granted)


def refuse(layer: Layer, unit: Unit, reason: str) -> Layer:
    """``layer`` without ``unit``."""
    anatomy = layer.anatomy
    errors: Mapping[Unit, float] = {u: e for u, e in anatomy.max_error.items() if u != unit}
    refused = {**anatomy.refused, unit: reason}
    return replace(layer, anatomy=LayerAnatomy(anatomy.units - {unit}, refused, errors))


def _nothing(reason: str) -> LayerAnatomy:
    return LayerAnatomy(frozenset(), dict.fromkeys(Unit, reason))


def _derive_layer(skeleton: Skeleton, trace: BlockTrace, block_error: float, kind: str) -> Layer:
    limit = tolerance(skeleton.dtype)
    findings = _Findings()
    findings.judge(Unit.BLOCK, block_error, limit, "a block's output, against the next one's input,")
    split = split_block(trace, skeleton.config, skeleton.d_model)
    if isinstance(split, NoSplit) or Unit.BLOCK in findings.refused:
        reason = split.reason if isinstance(split, NoSplit) else findings.refused[Unit.BLOCK]
        findings.refused.update(dict.fromkeys(set(Unit) - {Unit.BLOCK}, reason))
        return Layer(trace.block, findings.anatomy())
    findings.errors[Unit.COMPONENT] = split.error
    if "linear" in kind:
        # Qwen3-Next and kin: as wide as the softmax layers' heads, but other heads.
        findings.refused[Unit.HEAD] = "its attention is linear, not made of the heads of other layers"
    else:
        _judge_heads(findings, skeleton, trace, split)
    _judge_mlp(findings, trace, split, limit)
    return Layer(trace.block, findings.anatomy(), split.attention, split.mlp, split.experts)


def _judge_heads(findings: _Findings, skeleton: Skeleton, trace: BlockTrace, split: BlockSplit) -> None:
    width = split.attention.weight.shape[0]
    if width % skeleton.n_heads:
        findings.refused[Unit.HEAD] = (
            f"the output projection takes {width} inputs, which {skeleton.n_heads} heads do not divide"
        )
        return
    error = _rebuild_error(trace, split.attention)
    findings.judge(Unit.HEAD, error, tolerance(skeleton.dtype), "heads through the output projection")


def _judge_mlp(findings: _Findings, trace: BlockTrace, split: BlockSplit, limit: float) -> None:
    experts = split.experts
    if experts is None:
        findings.refused[Unit.EXPERT] = "the MLP is dense"
        findings.judge(
            Unit.NEURON, _rebuild_error(trace, split.mlp), limit, "neurons through the down projection"
        )
        return
    findings.refused[Unit.NEURON] = "the MLP is made of routed experts"
    try:
        with torch.inference_mode():
            slots = experts.slot_writes(*experts.arguments((), trace.calls[experts.module].given))
    except Exception as error:  # the model's own code, called in a way it may not allow
        findings.refused[Unit.EXPERT] = f"its experts cannot be run one by one ({type(error).__name__})"
        return
    writes = split.mlp.multiplier * slots.double()
    expected = split.mlp.multiplier * trace.calls[split.mlp.tap].output.double()
    error = deviation(writes.sum(1), expected, writes.abs().sum(1))
    findings.judge(Unit.EXPERT, error, limit, "the sum of the routed experts' outputs")


def _rebuild_error(trace: BlockTrace, part: SubLayer) -> float:
    assert part.projection is not None
    with torch.inference_mode():
        write, magnitude = part.rebuild(trace.calls[part.projection].input)
        return deviation(write, part.multiplier * trace.calls[part.tap].output.double(), magnitude)


def _uniform(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Refuses what cannot be stacked: heads, neurons or slots of another size than the first layer's."""
    sizes: dict[Unit, int] = {}
    result: list[Layer] = []
    for layer in layers:
        for unit, size in unit_sizes(layer).items():
            if sizes.setdefault(unit, size) != size:
                reason = f"its size is {size} where other layers have {sizes[unit]}"
                layer = refuse(layer, unit, reason)
        result.append(layer)
    return tuple(result)


def unit_sizes(layer: Layer) -> dict[Unit, int]:
    """Width of what each granted unit is captured from: all heads, the neurons, the expert slots."""
    sizes: dict[Unit, int] = {}
    if Unit.HEAD in layer.anatomy.units and layer.attention is not None:
        sizes[Unit.HEAD] = layer.attention.weight.shape[0]
    if Unit.NEURON in layer.anatomy.units and layer.mlp is not None:
        sizes[Unit.NEURON] = layer.mlp.weight.shape[0]
    if Unit.EXPERT in layer.anatomy.units and layer.experts is not None:
        sizes[Unit.EXPERT] = layer.experts.n_slots
    return sizes
