"""Self-certainty of given tokens: how far from uniform the model's predictions of them are.

Everything follows from three numbers a token, reduced on the model's device in blocks of positions:
pos times vocab never leaves it, and never exists as a whole. With logits z over V tokens and
p = softmax(z):

    kl_u_p     = -1/V sum_i log(V p_i)    = -log V - mean_i log p_i
    kl_p_u     =  sum_i p_i log(V p_i)    =  log V + sum_i p_i log p_i
    as_printed =  kl_p_u / V

Sources: Kang et al. 2025 (arXiv 2502.18581) for kl_u_p; arXiv 2507.17842, equation 3, as_printed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import torch
from jaxtyping import Float
from torch import Tensor

from lensd_api import ModelView, Site, Stack
from lensd_shop_r1.params import SelfCertainty

#: Vocabulary-wide logits that exist at once, in bytes of fp32. Two more such blocks are worked in.
BLOCK_BYTES = 24 * 2**20

#: The same on a GPU, where every block reads the whole output head again, and the fewest positions of one.
#: No estimate counts it: a GPU has the room, and batches are reduced one after another.
GPU_BLOCK_BYTES, GPU_BLOCK_POSITIONS = 256 * 2**20, 128


@dataclass(frozen=True, slots=True)
class TokenNumbers:
    """Per token, natural logarithms: of its own probability, their mean over the vocabulary, and
    their mean under the model's own distribution (minus the entropy)."""

    chosen: Float[Tensor, "pos"]
    mean: Float[Tensor, "pos"]
    expected: Float[Tensor, "pos"]

    def certainty(self, mode: SelfCertainty, vocab_size: int) -> Float[Tensor, "pos"]:
        """Certainty of each token in fp64; at least 0, and 0 for uniform predictions."""
        wide = log(vocab_size)
        match mode:
            case "kl_u_p":
                return -wide - self.mean.double()
            case "kl_p_u":
                return wide + self.expected.double()
            case "as_printed":
                return (wide + self.expected.double()) / vocab_size
            case "off":
                return torch.zeros(len(self.mean), dtype=torch.float64)


def token_numbers(stack: Stack, view: ModelView) -> Sequence[Tensor]:
    """Per row [pos, 3] fp32: chosen, mean and expected log-probability of the token after each position.

    A ``Reduce`` function over ``Site.FINAL_RESIDUAL``; the last position of a row is never asked for.
    """
    residual = stack.values[Site.FINAL_RESIDUAL]
    following = view.upload(
        [
            tokens[position + 1]
            for tokens, asked in zip(stack.tokens, stack.positions, strict=True)
            for position in asked
        ],
        torch.long,
    )
    found = torch.empty(len(following), 3, dtype=torch.float32, device=residual.device)
    rows = positions_at_once(view.anatomy.vocab_size, residual.device)
    for start in range(0, len(following), rows):
        part = slice(start, start + rows)
        found[part] = _numbers(view.logits(residual[part]), following[part])
    return [found[stack.slice_of(row)] for row in range(len(stack))]


def positions_at_once(vocab_size: int, device: torch.device) -> int:
    """Positions in a block of logits on ``device``."""
    if device.type == "cpu":
        return max(1, BLOCK_BYTES // (4 * vocab_size))
    return max(GPU_BLOCK_POSITIONS, GPU_BLOCK_BYTES // (4 * vocab_size))


def _numbers(logits: Float[Tensor, "pos vocab"], following: Tensor) -> Float[Tensor, "pos 3"]:
    logs = logits.float().log_softmax(-1)
    chosen = logs.gather(-1, following.unsqueeze(-1)).squeeze(-1)
    mean = logs.mean(-1)
    # In place: a third block of this size would be all that `p * log p` is.
    expected = logs.exp().mul_(logs).sum(-1)
    return torch.stack([chosen, mean, expected], -1)
