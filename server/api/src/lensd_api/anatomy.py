"""One vocabulary for every decoder: axes, sites, units, and what a model offers of them.

Axes are named once, here: ``batch pos src layer head head_dim d_model d_mlp expert vocab``.
Pure data; the server derives it from a model and verifies it numerically before it is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Site(StrEnum):
    """A place in a decoder whose activations can be captured.

    Shapes are of one row's capture; ``pos`` counts the asked positions, ``layer`` the asked
    layers in ascending order. The residual stream entering block 0 is EMBED + POS_EMBED, and
    each block adds its writes: ``BLOCK_OUT[i] = BLOCK_IN[i] + ATTN_WRITE[i] + MLP_WRITE[i]``
    where the layer offers :attr:`Unit.COMPONENT`.
    """

    EMBED = "embed"  # [pos, d_model] the token embedding as it enters block 0 (scale applied)
    POS_EMBED = "pos_embed"  # [pos, d_model] learned positions; zeros when there are none
    BLOCK_IN = "block_in"  # [pos, layer, d_model] residual stream before a block
    BLOCK_OUT = "block_out"  # [pos, layer, d_model] residual stream after a block
    ATTN_WRITE = "attn_write"  # [pos, layer, d_model] what attention adds to the stream
    MLP_WRITE = "mlp_write"  # [pos, layer, d_model] what the MLP (or experts) adds to the stream
    HEADS = "heads"  # [pos, layer, head, head_dim] input of the attention's output projection
    NEURONS = "neurons"  # [pos, layer, d_mlp] input of the MLP's output projection
    EXPERT_WRITES = "expert_writes"  # [pos, layer, slot, d_model] routed experts' weighted outputs
    EXPERT_IDS = "expert_ids"  # [pos, layer, slot] which expert fills each slot
    ATTENTION = "attention"  # [pos, layer, head, src] attention weights of the asked query positions
    VALUES = "values"  # [src, layer, head, head_dim] values, one a query head; all positions of the row
    FINAL_RESIDUAL = "final_residual"  # [pos, d_model] input of the final norm
    RAW_LOGITS = "raw_logits"  # [pos, vocab] the output head's own result, before soft-cap and scale
    LOGITS = "logits"  # [pos, vocab] what the model returns


class Unit(StrEnum):
    """How finely a block's contribution to the residual stream can be split."""

    BLOCK = "block"  # the whole block's delta: always valid
    COMPONENT = "component"  # attention and MLP
    HEAD = "head"  # attention by head
    NEURON = "neuron"  # MLP by neuron
    EXPERT = "expert"  # MLP by routed expert
    SOURCE = "source"  # attention by head and source token


@dataclass(frozen=True, slots=True)
class NormAnatomy:
    """``y = gain * (x - centre * mean(x)) / sqrt(var + eps) + bias``, as found numerically.

    ``gain`` is ``"w"``, ``"1+w"`` or ``"none"``; ``max_error`` the largest deviation seen from
    the model's own norm, relative to the largest output.
    """

    centre: bool
    gain: str
    has_bias: bool
    eps: float
    max_error: float


@dataclass(frozen=True, slots=True)
class LayerAnatomy:
    """What one block offers. ``refused`` says why a unit is missing."""

    units: frozenset[Unit]
    refused: Mapping[Unit, str] = field(default_factory=dict[Unit, str])
    #: Largest relative error among the identities that hold, by unit.
    max_error: Mapping[Unit, float] = field(default_factory=dict[Unit, float])


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Sizes of a decoder and what can be captured and split, verified at load."""

    architecture: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_mlp: int
    n_experts: int
    vocab_size: int
    context_length: int
    layers: tuple[LayerAnatomy, ...]
    final_norm: NormAnatomy | None
    #: The model returns ``scale * raw`` or ``softcap * tanh(scale * raw / softcap)``.
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    tied_embeddings: bool = False
    has_pos_embed: bool = False

    @property
    def units(self) -> frozenset[Unit]:
        """Units that every layer offers."""
        shared = frozenset(Unit)
        for layer in self.layers:
            shared &= layer.units
        return shared

    def layers_offering(self, unit: Unit) -> tuple[int, ...]:
        """Indices of the layers that offer ``unit``."""
        return tuple(i for i, layer in enumerate(self.layers) if unit in layer.units)
