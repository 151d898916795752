"""The control every learned map should be held against: ridge regression in closed form."""

from typing import Any

import torch
from torch import Tensor

from lensd_vsa_probe.algebra import bipolar

#: Penalties tried, per training row; standardised states make them comparable over models.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)


def ridge(states: Tensor, targets: Tensor, held_states: Tensor, held_targets: Tensor) -> Tensor:
    """Weights [d + 1, dim], the last row a bias, of the penalty that does best on the held rows.

    Solved in fp64 from the smaller of the two normal systems.
    """
    x, y = _with_one(states.double()), targets.double()
    tried = [_solve(x, y, penalty * len(x)) for penalty in PENALTIES]
    agreements = [(predict(weights, held_states) * held_targets).mean().item() for weights in tried]
    return tried[agreements.index(max(agreements))]


def predict(weights: Tensor, states: Tensor) -> Tensor:
    """Bipolar hypervectors [n, dim] of standardised ``states`` [n, d]."""
    return bipolar((_with_one(states.double()) @ weights).float())


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)


def _solve(x: Tensor, y: Tensor, amount: float) -> Tensor:
    """The minimum of |x w - y|^2 + amount * |w|^2."""
    linalg: Any = torch.linalg
    if len(x) < x.shape[1]:
        return x.T @ linalg.solve(x @ x.T + amount * torch.eye(len(x), dtype=x.dtype), y)
    return linalg.solve(x.T @ x + amount * torch.eye(x.shape[1], dtype=x.dtype), x.T @ y)
