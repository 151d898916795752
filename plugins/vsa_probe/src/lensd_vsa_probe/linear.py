"""The control every learned map should be held against: ridge regression in closed form."""

from typing import Any

import torch
from torch import Tensor

from lensd_vsa_probe.algebra import bipolar

#: Penalties tried, per training row; standardised states make them comparable over models.
PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)


def ridge(states: Tensor, targets: Tensor, held_states: Tensor, held_targets: Tensor) -> Tensor:
    """Weights [d + 1, dim], the last row a bias, of the penalty that does best on the held rows.

    The minimum of |x w - y|^2 + penalty * rows * |w|^2, solved in fp64 from the smaller of the two
    normal systems, which all penalties share.
    """
    x, y = _with_one(states.double()), targets.double()
    few = len(x) < x.shape[1]
    products, right = (x @ x.T, y) if few else (x.T @ x, x.T @ y)
    tried = [_solve(products, penalty * len(x), right) for penalty in PENALTIES]
    if few:
        tried = [x.T @ solved for solved in tried]
    agreements = [(predict(weights, held_states) * held_targets).mean().item() for weights in tried]
    return tried[agreements.index(max(agreements))]


def predict(weights: Tensor, states: Tensor) -> Tensor:
    """Bipolar hypervectors [n, dim] of standardised ``states`` [n, d]."""
    return bipolar((_with_one(states.double()) @ weights).float())


def _with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)


def _solve(products: Tensor, amount: float, right: Tensor) -> Tensor:
    linalg: Any = torch.linalg
    return linalg.solve(products + amount * torch.eye(len(products), dtype=products.dtype), right)
