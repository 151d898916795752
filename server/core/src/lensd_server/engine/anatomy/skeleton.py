"""Where the parts of a decoder are: blocks, embeddings, output head. Found by structure.

Nothing here is trusted yet: :mod:`lensd_server.engine.anatomy.inspect` checks numerically what the parts do.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lensd_api import LoadFailed


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The parts every decoder has, and the sizes its configuration states."""

    module: PreTrainedModel
    config: Any
    decoder: nn.Module
    blocks: tuple[nn.Module, ...]
    token_embedding: nn.Module
    head: nn.Module
    d_model: int
    n_heads: int
    vocab_size: int
    context_length: int

    @property
    def device(self) -> torch.device:
        """Where token ids have to be."""
        return next(self.token_embedding.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the weights."""
        return next(self.token_embedding.parameters()).dtype


def find_skeleton(module: PreTrainedModel) -> Skeleton:
    """Finds the parts of a causal language model. Raises LoadFailed when one is missing."""
    config = cast("Any", module.config).get_text_config()
    head = module.get_output_embeddings()
    token_embedding = module.get_input_embeddings()
    if not isinstance(head, nn.Module) or not isinstance(token_embedding, nn.Module):
        raise unsupported(module, "it has no output head or no token embedding")
    predicted = int(cast("Tensor", head.weight).shape[0])
    readable = next(token_embedding.parameters()).shape[0]
    if predicted > readable:
        # A token id is checked against the head's size alone, and beyond the embedding a GPU ends the process.
        raise unsupported(
            module, f"its output head predicts {predicted} tokens, but its embedding holds {readable}"
        )
    decoder, blocks = _find_blocks(module, _stated(module, config, "num_hidden_layers"))
    return Skeleton(
        module=module,
        config=config,
        decoder=decoder,
        blocks=blocks,
        token_embedding=token_embedding,
        head=head,
        d_model=_stated(module, config, "hidden_size"),
        n_heads=_stated(module, config, "num_attention_heads"),
        vocab_size=predicted,
        context_length=_context_length(config),
    )


def unsupported(module: PreTrainedModel, why: str) -> LoadFailed:
    """The error for a model whose structure is not that of a decoder as understood here."""
    return LoadFailed(
        f"{type(module).__name__} cannot be served: {why}",
        reason="UNSUPPORTED_ARCHITECTURE",
        metadata={"architecture": type(module).__name__},
    )


def is_projection(module: nn.Module) -> bool:
    """Whether ``module`` is an affine map whose weight :func:`input_by_output` can give."""
    return isinstance(module, nn.Linear | Conv1D)


def input_by_output(projection: nn.Module) -> Tensor:
    """Weight of a projection as [n_in, n_out], a view."""
    weight = cast("Tensor", projection.weight).detach()
    return weight if isinstance(projection, Conv1D) else weight.T


def first_tensor(output: Any) -> Tensor:
    """The tensor of a module's output: some architectures return it inside a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def rows_of(tensor: Tensor) -> Tensor:
    """[..., width] as [n, width]: some modules see the batch flattened (OPT, Mixtral)."""
    return tensor.reshape(-1, tensor.shape[-1])


def _find_blocks(module: PreTrainedModel, n_layers: int) -> tuple[nn.Module, tuple[nn.Module, ...]]:
    """The list of blocks and the module that holds it, next to final norm and embeddings."""
    for parent in cast("nn.Module", module.get_decoder()).modules():
        for child in parent.children():
            if isinstance(child, nn.ModuleList) and len(child) == n_layers:
                return parent, tuple(child)
    raise unsupported(module, f"its decoder holds no list of {n_layers} blocks")


def _stated(module: PreTrainedModel, config: Any, name: str) -> int:
    value = getattr(config, name, None)
    if not isinstance(value, int):
        raise unsupported(module, f"its configuration states no {name}")
    return value


def _context_length(config: Any) -> int:
    # LongRoPE turns all rows of a batch by other angles once one of them is longer than this.
    limits = list(_original_lengths(config))
    for name in ("max_position_embeddings", "n_positions", "seq_length"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return min([value, *limits])
    # Bloom has no limit of its own (ALiBi); it was trained on 2,048 tokens.
    return min([2048, *limits])


def _original_lengths(config: Any) -> Iterator[int]:
    """Up to where rotary embeddings are the same for whatever stands in a batch, where that ends at all."""
    stated: Any = getattr(config, "rope_parameters", None) or {}
    for rope in (stated, *stated.values()):  # some models have them by kind of layer
        if isinstance(rope, Mapping) and rope.get("rope_type") == "longrope":
            own = cast("Mapping[str, Any]", rope).get("original_max_position_embeddings")
            length = own or getattr(config, "original_max_position_embeddings", None)
            if isinstance(length, int) and length > 0:
                yield length
