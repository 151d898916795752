"""The public anatomy of an inspected structure: sizes, and what every layer offers."""

from typing import Any

from torch import nn

from lensd_api import Anatomy, Unit
from lensd_server.engine.anatomy.layers import unit_sizes
from lensd_server.engine.anatomy.skeleton import Skeleton
from lensd_server.engine.anatomy.structure import Structure


def describe(structure: Structure) -> Anatomy:
    """Sizes are those of the weights found; the configuration's only where nothing was."""
    skeleton, read_out = structure.skeleton, structure.read_out
    sizes: dict[Unit, int] = {}
    for layer in structure.layers:
        sizes = unit_sizes(layer) | sizes
    experts = [layer.experts.n_experts for layer in structure.layers if layer.experts is not None]
    return Anatomy(
        architecture=type(skeleton.module).__name__,
        n_layers=len(structure.layers),
        d_model=skeleton.d_model,
        n_heads=skeleton.n_heads,
        n_kv_heads=_n_kv_heads(skeleton.config, skeleton.n_heads),
        head_dim=_head_dim(skeleton, sizes.get(Unit.HEAD)),
        d_mlp=sizes.get(Unit.NEURON, 0),
        n_experts=max(experts, default=0),
        vocab_size=skeleton.vocab_size,
        context_length=skeleton.context_length,
        layers=tuple(layer.anatomy for layer in structure.layers),
        final_norm=read_out.norm.anatomy if read_out.norm is not None else None,
        logit_scale=read_out.transform.scale,
        logit_softcap=read_out.transform.softcap,
        tied_embeddings=_is_tied(skeleton.head, skeleton.token_embedding),
        has_pos_embed=structure.embeddings.position is not None,
    )


def _head_dim(skeleton: Skeleton, width: int | None) -> int:
    if width is not None:
        return width // skeleton.n_heads
    stated = getattr(skeleton.config, "head_dim", None)
    return stated if isinstance(stated, int) else skeleton.d_model // skeleton.n_heads


def _n_kv_heads(config: Any, n_heads: int) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        return 1  # Falcon 7B states the number of query heads nevertheless
    for name in ("num_key_value_heads", "num_kv_heads"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return n_heads


def _is_tied(head: nn.Module, embedding: nn.Module) -> bool:
    return getattr(head, "weight", None) is getattr(embedding, "weight", None)
