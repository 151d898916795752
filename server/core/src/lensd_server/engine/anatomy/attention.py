"""Attention weights of a few query positions, recomputed beside the model's own attention.

Models that use transformers' ``AttentionInterface`` are switched, once, to an implementation
that defers to the one they had and, when the context asks for it, shows queries, keys and values to a
recorder. The model's numbers do not change; the recorder pays for the asked rows only.

The two names registered here are the one piece of module-level state: transformers looks
implementations up in a global table. Each is registered with its mask function as well, since a name
without one gets no mask at all and causality is silently lost.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one attention module was about to compute.

    ``query`` is [row, head, pos, head_dim], ``key`` and ``value`` [row, kv_head, src, head_dim];
    ``mask`` broadcasts to [row, head, pos, src]: boolean (seen) or additive, ``None`` for causal.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float
    softcap: float | None

    def weights(self, row: int, positions: Tensor) -> Tensor:
        """[pos, head, src] attention weights of the queries at ``positions`` [pos] of ``row``, fp32."""
        query = self.query[row][:, positions].float()
        key = self._per_query_head(self.key[row]).float()
        scores = (query @ key.mT) * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        seen = self._seen(row, positions)
        scores = scores.masked_fill(~seen, float("-inf")) if seen.dtype == torch.bool else scores + seen
        # A position that sees nothing has no weights; softmax would make it NaN.
        return (
            torch.softmax(scores, dim=-1)
            .masked_fill(scores.amax(-1, keepdim=True) == float("-inf"), 0)
            .transpose(0, 1)
        )

    def values(self, row: int, sources: slice) -> Tensor:
        """[src, head, head_dim] values of ``sources``, one a query head."""
        return self._per_query_head(self.value[row, :, sources]).transpose(0, 1)

    def _per_query_head(self, tensor: Tensor) -> Tensor:
        return tensor.repeat_interleave(self.query.shape[1] // tensor.shape[0], dim=0)

    def _seen(self, row: int, positions: Tensor) -> Tensor:
        if self.mask is None:
            # Queries are the last of the sources.
            past = self.key.shape[2] - self.query.shape[2]
            sources = torch.arange(self.key.shape[2], device=positions.device)
            return (sources[None, :] <= positions[:, None] + past)[None]
        mask = self.mask[row if self.mask.shape[0] > 1 else 0]
        return mask[:, positions, : self.key.shape[2]]


#: Called with the attention module and what it is about to compute.
Recorder = Callable[[nn.Module, AttentionCall], None]

_recorder: ContextVar[Recorder | None] = ContextVar("lensd_attention_recorder", default=None)


@contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Shows every attention call made in this context to ``recorder``."""
    token = _recorder.set(recorder)
    try:
        yield
    finally:
        _recorder.reset(token)


def install_recorder(module: PreTrainedModel) -> bool:
    """Switches ``module`` to a recording implementation of the attention it already uses.

    False, with nothing changed, when it does not go through ``AttentionInterface`` or uses
    an implementation other than ``sdpa`` and ``eager``.
    """
    # Private, but the only way to learn this; the inspection verifies what it promises.
    if not cast("Any", module)._can_set_attn_implementation():
        return False
    present = attention_implementation(module)
    if present in _RECORDING_OF:
        module.set_attn_implementation(_RECORDING_OF[present])
    return attention_implementation(module) in _RECORDING_OF.values()


def remove_recorder(module: PreTrainedModel) -> None:
    """Gives ``module`` the implementation back that it had before :func:`install_recorder`."""
    for original, name in _RECORDING_OF.items():
        if attention_implementation(module) == name:
            module.set_attn_implementation(original)


def attention_implementation(module: PreTrainedModel) -> str:
    """Name of the implementation the model uses."""
    return str(cast("Any", module.config.get_text_config())._attn_implementation)


def _recording_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    _show(module, query, key, value, mask, kwargs)
    groups = query.shape[1] // key.shape[1]
    if groups > 1 and mask is None and _lacks_grouped_kernel(query):
        # As the model itself does where there is a mask.
        key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
        # Stands for a module whose heads all have keys and values of their own.
        module = cast("nn.Module", SimpleNamespace(is_causal=getattr(module, "is_causal", True)))
    return sdpa_attention_forward(module, query, key, value, mask, **kwargs)


def _lacks_grouped_kernel(query: Tensor) -> bool:
    """Whether heads that share keys and values would be computed with all scores in memory: on a GPU, only half
    precision has a kernel for them. At 8,192 tokens that took a hundred times the memory and five times as long."""
    return query.is_cuda and query.dtype == torch.float32


def _recording_eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    _show(module, query, key, value, mask, kwargs)
    # Each architecture's file has its own eager function: Gemma 2's knows about soft-caps.
    eager = cast("Any", sys.modules[type(module).__module__]).eager_attention_forward
    return eager(module, query, key, value, mask, **kwargs)


def _show(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    kwargs: Mapping[str, Any],
) -> None:
    recorder = _recorder.get()
    if recorder is not None:
        scaling = kwargs.get("scaling")
        scaling = query.shape[-1] ** -0.5 if scaling is None else float(scaling)
        recorder(module, AttentionCall(query, key, value, mask, scaling, kwargs.get("softcap")))


_RECORDING_OF = {"sdpa": "lensd_sdpa", "eager": "lensd_eager"}
AttentionInterface.register("lensd_sdpa", _recording_sdpa)
AttentionMaskInterface.register("lensd_sdpa", sdpa_mask)
AttentionInterface.register("lensd_eager", _recording_eager)
AttentionMaskInterface.register("lensd_eager", eager_mask)
