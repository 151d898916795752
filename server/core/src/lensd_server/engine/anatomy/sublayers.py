"""What attention and MLP of one block add to the residual stream, found and checked.

A block is ``exit = entry + m * attn + m * mlp``. Where ``attn`` and ``mlp`` can be read differs: at
the output projection, behind a norm that follows it (Gemma, OLMo 2), or at the sub-module; and
``m`` is 1 or the configuration's (Granite). The combination is taken that makes the sum come out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from lensd_server.engine.anatomy.experts import RoutedExperts, find_experts
from lensd_server.engine.anatomy.identity import deviation, tolerance
from lensd_server.engine.anatomy.norms import VerifiedNorm, derive_norm
from lensd_server.engine.anatomy.probe import BlockTrace
from lensd_server.engine.anatomy.skeleton import input_by_output, is_projection

_ATTENTION_NAMES = ("attn", "attention")
_MULTIPLIER_NAMES = ("residual_multiplier",)


@dataclass(frozen=True, slots=True)
class SubLayer:
    """How attention or MLP of one block writes.

    ``multiplier`` times the output of ``tap`` is what enters the stream. ``projection`` is the
    affine map whose input is split into heads or neurons; ``None`` for routed experts.
    """

    tap: nn.Module
    multiplier: float
    projection: nn.Module | None
    post_norm: VerifiedNorm | None

    @property
    def weight(self) -> Tensor:
        """[n_in, d_model]."""
        assert self.projection is not None
        return input_by_output(self.projection)

    @property
    def bias(self) -> Tensor | None:
        """[d_model]."""
        bias = getattr(self.projection, "bias", None)
        return bias.detach() if isinstance(bias, Tensor) else None

    def rebuild(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """The write that ``inputs`` [n, n_in] of the projection make, and the magnitude of its terms."""
        weight, bias = self.weight, self.bias
        write = (inputs @ weight).double()
        magnitude = (inputs.abs() @ weight.abs()).double()
        if bias is not None:
            write, magnitude = write + bias, magnitude + bias.abs()
        if self.post_norm is not None:
            scale = self.post_norm.inverse_std(write)
            scale = scale if self.post_norm.gain is None else scale * self.post_norm.gain.abs()
            write, magnitude = self.post_norm(write), magnitude * scale
        return self.multiplier * write, abs(self.multiplier) * magnitude


@dataclass(frozen=True, slots=True)
class BlockSplit:
    """The two writes of a block, and by how much their sum misses the block's delta."""

    attention: SubLayer
    mlp: SubLayer
    experts: RoutedExperts | None
    error: float


@dataclass(frozen=True, slots=True)
class NoSplit:
    """Why the writes of a block could not be told apart."""

    reason: str


@dataclass(frozen=True, slots=True)
class _Part:
    projection: nn.Module | None
    taps: tuple[nn.Module, ...]


def split_block(trace: BlockTrace, config: Any, d_model: int) -> BlockSplit | NoSplit:
    """Finds how attention and MLP of a traced block write."""
    attention = _attention_module(trace)
    if attention is None:
        return NoSplit("no single attention module was called in the block")
    inside = set(attention.modules())
    experts = find_experts([m for m in trace.calls if m not in inside], trace, d_model)
    attention_projection = _last_projection([m for m in trace.calls if m in inside])
    mlp_projection = _last_projection([m for m in trace.calls if m not in inside])
    if attention_projection is None or (mlp_projection is None and experts is None):
        return NoSplit("no projection into the residual stream was called in attention or in the MLP")
    if experts is not None:
        mlp_projection = None
    source = mlp_projection if experts is None else experts.module
    assert source is not None
    parts = (
        _Part(attention_projection, _taps(trace, attention_projection, attention)),
        _Part(mlp_projection, _taps(trace, source, _child_holding(trace.block, source))),
    )
    return _fit(trace, parts, experts, _multipliers(config))


def _fit(
    trace: BlockTrace, parts: tuple[_Part, _Part], experts: RoutedExperts | None, multipliers: Sequence[float]
) -> BlockSplit | NoSplit:
    limit = tolerance(trace.entry.dtype)
    best = float("inf")
    for multiplier, attn_tap, mlp_tap in product(multipliers, parts[0].taps, parts[1].taps):
        attn = multiplier * trace.calls[attn_tap].output.double()
        mlp = multiplier * trace.calls[mlp_tap].output.double()
        if not attn.shape == mlp.shape == trace.exit.shape:
            continue
        error = deviation(trace.entry + attn + mlp, trace.exit, trace.entry, attn, mlp)
        if error <= limit:
            attention = _sub_layer(trace, parts[0].projection, attn_tap, multiplier)
            return BlockSplit(
                attention, _sub_layer(trace, parts[1].projection, mlp_tap, multiplier), experts, error
            )
        best = min(best, error)
    return NoSplit(
        f"input plus attention and MLP writes miss the block's output by {best:.1e} (tolerance {limit:.0e})"
    )


def _sub_layer(
    trace: BlockTrace, projection: nn.Module | None, tap: nn.Module, multiplier: float
) -> SubLayer:
    call = trace.calls[tap]
    norm = None
    if (
        projection is not None
        and tap is not projection
        and torch.equal(call.input, trace.calls[projection].output)
    ):
        norm = derive_norm(tap, call.input)
    return SubLayer(tap, multiplier, projection, norm)


def _attention_module(trace: BlockTrace) -> nn.Module | None:
    found = [
        module
        for name, module in trace.block.named_children()
        if module in trace.calls
        and any(part in name.lower() for part in _ATTENTION_NAMES)
        and any(is_projection(inner) for inner in module.modules())
    ]
    return found[0] if len(found) == 1 else None


def _last_projection(called: Sequence[nn.Module]) -> nn.Module | None:
    projections = [module for module in called if is_projection(module)]
    return projections[-1] if projections else None


def _taps(trace: BlockTrace, source: nn.Module, owner: nn.Module) -> tuple[nn.Module, ...]:
    """Modules whose output may be the write: ``source``, ``owner``, or what follows one of them."""
    taps = dict.fromkeys(module for module in (source, owner) if module in trace.calls)
    for module in trace.block.children():
        call = trace.calls.get(module)
        if call is None or not call.given or isinstance(module, nn.Dropout):
            continue
        if any(
            call.input.shape == trace.calls[t].output.shape and torch.equal(call.input, trace.calls[t].output)
            for t in (source, owner)
            if t in trace.calls
        ):
            taps[module] = None
    return tuple(taps)


def _child_holding(block: nn.Module, inner: nn.Module) -> nn.Module:
    for child in block.children():
        if any(module is inner for module in child.modules()):
            return child
    return inner


def _multipliers(config: Any) -> list[float]:
    stated = [getattr(config, name, None) for name in _MULTIPLIER_NAMES]
    return [1.0, *(float(value) for value in stated if isinstance(value, int | float) and value != 1.0)]
