"""What leaves the model's device for one text: its pooled state and a few token ids."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lensd_api import Anatomy, Capture, ModelView, Reduce, Site, Stack
from lensd_vsa_probe.pooling import Pooling, pool

#: The model's own likeliest next tokens that are kept.
TOP_TOKENS = 5


@dataclass(frozen=True, slots=True)
class ReadingSpec:
    """How states are pooled; ``lens_tokens``: the concepts' first tokens, for the restricted lens."""

    pooling: Pooling
    k: int
    seed: int
    lens_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class StateReading:
    """One text at its last token.

    ``pooled`` [p] fp32; ``embedded`` [d_model] fp32, the stream before the first block; ``top`` and
    ``top_logits`` [TOP_TOKENS], the model's next tokens; ``lens`` [5]: its likeliest tokens among
    ``lens_tokens``, padded with -1.
    """

    pooled: Tensor
    embedded: Tensor
    top: Tensor
    top_logits: Tensor
    lens: Tensor


def upper_layers(anatomy: Anatomy) -> tuple[int, ...]:
    """Blocks after which the stream is read: from the middle of the model to its end."""
    return tuple(range(max(0, anatomy.n_layers // 2 - 1), anatomy.n_layers))


def reading_capture(layers: tuple[int, ...], spec: ReadingSpec, anatomy: Anatomy) -> Capture[StateReading]:
    """The stream after each of ``layers`` at the last token, before the final norm."""
    sites = {Site.BLOCK_OUT, Site.EMBED, Site.FINAL_RESIDUAL}
    if anatomy.has_pos_embed:
        sites.add(Site.POS_EMBED)
    return Capture(frozenset(sites), positions=(-1,), layers=layers, reduce=Reduce(read_states, spec))


def read_states(stack: Stack, view: ModelView) -> list[StateReading]:
    """The reduce: one reading per row. Rows of one spec are pooled together."""
    logits = view.logits(stack.values[Site.FINAL_RESIDUAL])
    top = logits.float().topk(min(TOP_TOKENS, logits.shape[-1]), dim=-1)
    embedded = stack.values[Site.EMBED].float()
    if Site.POS_EMBED in stack.values:
        embedded = embedded + stack.values[Site.POS_EMBED].float()
    readings: list[StateReading | None] = [None] * len(stack)
    for spec in dict.fromkeys(stack.args):
        rows = [row for row, other in enumerate(stack.args) if other == spec]
        own = view.upload(rows)
        pooled = pool(stack.values[Site.BLOCK_OUT][own], spec.pooling, spec.k, spec.seed)
        lens = _restricted(logits[own], spec.lens_tokens, view)
        for i, row in enumerate(rows):
            readings[row] = StateReading(pooled[i], embedded[row], top.indices[row], top.values[row], lens[i])
    return [reading for reading in readings if reading is not None]


def _restricted(logits: Tensor, tokens: Sequence[int], view: ModelView) -> Tensor:
    """[n, 5]: the likeliest of ``tokens``, best first."""
    found = torch.full((len(logits), 5), -1, dtype=torch.long, device=logits.device)
    if tokens:
        allowed = view.upload(tokens)
        best = logits[:, allowed].topk(min(5, len(allowed)), dim=-1).indices
        found[:, : best.shape[1]] = allowed[best]
    return found
