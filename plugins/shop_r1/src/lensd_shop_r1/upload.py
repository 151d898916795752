"""From the host to a model's device, for what is computed there."""

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(
    values: Sequence[int] | Sequence[float] | Tensor, device: torch.device, dtype: torch.dtype | None = None
) -> Tensor:
    """``values``, positions or token ids for instance, as a tensor on ``device``.

    On a GPU the copy is queued behind the forward. ``torch.tensor(values, device=device)`` would wait for it, and
    so does indexing with a list.
    """
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
