"""From the host to the model's device, without a wait for the forward that is queued there."""

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(values: Sequence[int] | Tensor, device: torch.device) -> Tensor:
    """``values`` on ``device``. On a GPU the copy is queued: one from pageable memory is waited for."""
    tensor = torch.as_tensor(values)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
