"""The map from a pooled state to the logits of a hypervector."""

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """Four linear maps with two residual blocks between: [n, d] -> logits [n, dim].

    Linear, LayerNorm, GELU, dropout; twice the same around a skip; Linear. With ``width = dim`` these
    are the published sizes (54.6 M parameters at d = 1024, dim = 4096). Source: arXiv 2509.25045.
    """

    def __init__(self, d_in: int, width: int, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.linear = nn.ModuleList([nn.Linear(d_in, width), *(nn.Linear(width, width) for _ in range(2))])
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.read_out = nn.Linear(width, dim)

    def forward(self, states: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Drops out only where a ``generator`` is given.

        It is the caller's own: the global one is shared by all threads of the server, and a fit that
        goes on after a restart must draw what it would have drawn.
        """
        x = states
        for number, (linear, norm) in enumerate(zip(self.linear, self.norm, strict=True)):
            written = nn.functional.gelu(norm(linear(x)))
            if generator is not None and self.dropout > 0:
                kept = draw_kept(written, self.dropout, generator)
                written = written * (kept / (1 - self.dropout))
            x = written if number == 0 else x + written
        return self.read_out(x)


def draw_kept(like: Tensor, dropout: float, generator: torch.Generator) -> Tensor:
    """True where a value of ``like`` is kept: all but a share ``dropout``, to 1/65536.

    Four draws come from each 64-bit number: one at a time they take a tenth of a training step on a CPU.
    """
    numbers = torch.empty(-(-like.numel() // 4), dtype=torch.int64, device=like.device)
    drawn = numbers.random_(-(2**63), None, generator=generator).view(torch.int16)
    return drawn[: like.numel()].view(like.shape) >= round(dropout * 2**16) - 2**15


def initialise(encoder: Encoder, seed: int) -> None:
    """Draws all weights from ``seed``: uniform within 1/sqrt(fan in), as torch's own default."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.Linear):
                bound = module.in_features**-0.5
                module.weight.uniform_(-bound, bound, generator=generator)
                module.bias.uniform_(-bound, bound, generator=generator)


def loss(logits: Tensor, targets: Tensor) -> Tensor:
    """BCE of the signs plus 0.1 of the squared error; ``targets`` bipolar. Source: arXiv 2509.25045."""
    signs = nn.functional.binary_cross_entropy_with_logits(logits, (targets + 1) / 2)
    return signs + 0.1 * nn.functional.mse_loss(logits, targets)
