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
                kept = torch.empty_like(written).bernoulli_(1 - self.dropout, generator=generator)
                written = written * kept / (1 - self.dropout)
            x = written if number == 0 else x + written
        return self.read_out(x)


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
