"""Log-probabilities of given tokens, reduced on the device so that pos times vocab never exists."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lensd_api import Capture, ModelView, Reduce, Row, Site, Stack

#: Positions whose vocabulary-wide logits exist at once: 25 MB in fp32 for 49,152 tokens.
CHUNK = 128


def logprob_capture(row: Row) -> Capture[Tensor]:
    """What to capture of ``row`` (at least two tokens) for :func:`token_logprobs`."""
    return Capture(
        sites=frozenset({Site.FINAL_RESIDUAL}),
        positions=tuple(range(len(row.tokens) - 1)),
        layers=(),
        reduce=Reduce(token_logprobs),
    )


def token_logprobs(stack: Stack, view: ModelView) -> Sequence[Tensor]:
    """Per row [len(tokens) - 1] fp32: log p(token | tokens before it)."""
    residual = stack.values[Site.FINAL_RESIDUAL]
    following = torch.tensor([t for tokens in stack.tokens for t in tokens[1:]], device=residual.device)
    found = torch.empty(len(following), dtype=torch.float32, device=residual.device)
    for start in range(0, len(following), CHUNK):
        part = slice(start, start + CHUNK)
        logits = view.logits(residual[part]).float()
        chosen = logits.gather(-1, following[part].unsqueeze(-1)).squeeze(-1)
        found[part] = chosen - logits.logsumexp(-1)
    return [found[stack.slice_of(row)] for row in range(len(stack))]
