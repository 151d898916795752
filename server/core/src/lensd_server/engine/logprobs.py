"""What the vocabulary says of given tokens, reduced on the device so that pos times vocab never exists."""

from collections.abc import Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lensd_api import Capture, ModelView, Reduce, Row, Site, Stack, TokenStatistics
from lensd_server.engine.upload import upload

T = TypeVar("T")

#: Positions whose vocabulary-wide logits exist at once: 25 MB in fp32 for 49,152 tokens.
CHUNK = 128

#: Bytes of such logits on a GPU, where every chunk reads the whole output head again.
GPU_CHUNK_BYTES = 256 * 2**20


def logprob_capture(row: Row) -> Capture[Tensor]:
    """What to capture of ``row`` (at least two tokens) for :func:`token_logprobs`."""
    return _predictions_of(row, Reduce(token_logprobs))


def statistics_capture(row: Row) -> Capture[TokenStatistics]:
    """What to capture of ``row`` (at least two tokens) for :func:`token_statistics`."""
    return _predictions_of(row, Reduce(token_statistics))


def positions_at_once(view: ModelView, device: torch.device) -> int:
    """Positions whose vocabulary-wide logits may exist at once on ``device``."""
    if device.type == "cpu":
        return CHUNK
    return max(CHUNK, GPU_CHUNK_BYTES // (4 * view.anatomy.vocab_size))


def token_logprobs(stack: Stack, view: ModelView) -> Sequence[Tensor]:
    """Per row [len(tokens) - 1] fp32: log p(token | tokens before it)."""
    found = torch.cat([_chosen(logits, following) for logits, following in _chunks(stack, view)])
    return [found[stack.slice_of(row)] for row in range(len(stack))]


def token_statistics(stack: Stack, view: ModelView) -> Sequence[TokenStatistics]:
    """Per row the statistics of the prediction of each token but the first."""
    parts: list[Tensor] = []
    for logits, following in _chunks(stack, view):
        # entr() is 0 where a probability is: a logit of minus infinity must not turn into NaN.
        entropy = torch.special.entr(logits.softmax(-1)).sum(-1)
        columns = (_chosen(logits, following), entropy, logits.logsumexp(-1), logits.mean(-1))
        parts.append(torch.stack(columns))
    found = torch.cat(parts, 1)
    return [TokenStatistics(*found[:, stack.slice_of(row)]) for row in range(len(stack))]


def no_statistics() -> TokenStatistics:
    """Of a row of one token: nothing comes before it that would predict it."""
    return TokenStatistics(torch.empty(0), torch.empty(0), torch.empty(0), torch.empty(0))


def _predictions_of(row: Row, reduce: Reduce[T]) -> Capture[T]:
    sites = frozenset({Site.FINAL_RESIDUAL})
    return Capture(sites, positions=tuple(range(len(row.tokens) - 1)), layers=(), reduce=reduce)


def _chunks(stack: Stack, view: ModelView) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [n, vocab] in fp32 and the tokens [n] that follow, some positions at a time."""
    residual = stack.values[Site.FINAL_RESIDUAL]
    following = upload([t for tokens in stack.tokens for t in tokens[1:]], residual.device, torch.long)
    size = positions_at_once(view, residual.device)
    for start in range(0, len(following), size):
        part = slice(start, start + size)
        yield view.logits(residual[part]).float(), following[part]


def _chosen(logits: Tensor, following: Tensor) -> Tensor:
    return logits.gather(-1, following.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(-1)
