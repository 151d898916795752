"""Chooses the next tokens of rows that are being written, on the device: the vocabulary stays there."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lensd_api import ModelView, Site, Stack
from lensd_server.engine.logprobs import positions_at_once
from lensd_server.engine.upload import upload


@dataclass(frozen=True, slots=True)
class Draw:
    """How one token is chosen; ``uniform`` in [0, 1) decides where ``temperature`` is above 0."""

    temperature: float
    top_k: int
    top_p: float
    uniform: float


@dataclass(frozen=True, slots=True)
class Choice:
    """A token and the log-probability the model gave it."""

    token: int
    logprob: float


def choose_tokens(stack: Stack, view: ModelView) -> Sequence[Choice]:
    """One token a row, after its only position; ``args`` are :class:`Draw`."""
    residual = stack.values[Site.FINAL_RESIDUAL]
    parts: list[Tensor] = []
    size = positions_at_once(view, residual.device)
    for start in range(0, len(stack), size):
        own = slice(start, start + size)
        logits = view.logits(residual[own]).float()
        tokens = pick(logits, stack.args[own])
        chosen = logits.gather(-1, tokens[:, None])[:, 0] - logits.logsumexp(-1)
        parts.append(torch.stack([tokens.double(), chosen.double()]))
    tokens, logprobs = torch.cat(parts, 1).tolist()
    return [Choice(int(token), logprob) for token, logprob in zip(tokens, logprobs, strict=True)]


def pick(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """[n] tokens for [n, vocab] logits."""
    tokens = logits.argmax(-1)
    sampled = [i for i, draw in enumerate(draws) if draw.temperature > 0]
    if not sampled:
        return tokens
    own = [draws[i] for i in sampled]
    rows = upload(sampled, logits.device, torch.long)
    scaled = logits[rows].double() / _column([draw.temperature for draw in own], logits)
    if any(draw.top_k or draw.top_p < 1.0 for draw in own):
        scaled = scaled.masked_fill(scaled < _least(scaled, own), float("-inf"))
    # In the order of the vocabulary, where rounding cannot swap neighbours as in one by probability.
    below = scaled.softmax(-1).cumsum(-1)
    target = _column([draw.uniform for draw in own], logits) * below[:, -1:]
    drawn = (below <= target).sum(-1).clamp(max=logits.shape[-1] - 1)
    return tokens.index_copy(0, rows, drawn)


def _least(scaled: Tensor, draws: Sequence[Draw]) -> Tensor:
    """[n, 1] the smallest logit that may be drawn."""
    vocab = scaled.shape[-1]
    ranked = scaled.sort(-1, descending=True).values
    wide = upload([min(draw.top_k or vocab, vocab) for draw in draws], scaled.device, torch.long)
    rank = torch.arange(vocab, device=scaled.device)
    ranked = ranked.masked_fill(rank >= wide[:, None], float("-inf"))
    likely = ranked.softmax(-1)
    # A token stays if those before it do not hold enough; the likeliest always does.
    before = likely.cumsum(-1) - likely
    stays = (before < _column([draw.top_p for draw in draws], scaled)) & (rank < wide[:, None])
    last = (stays.sum(-1) - 1).clamp(min=0)
    return ranked.gather(-1, last[:, None])


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return upload(values, like.device, torch.float64)[:, None]
