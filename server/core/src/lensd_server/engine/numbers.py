"""Numbers from the host for what is queued on a device, without a wait for what was queued before."""

from collections.abc import Sequence

import torch
from torch import Tensor


def numbers_on(device: torch.device, numbers: Sequence[float], dtype: torch.dtype = torch.long) -> Tensor:
    """``numbers`` [n] on ``device``. On a GPU the copy is queued: one from pageable memory is waited for."""
    return torch.tensor(numbers, dtype=dtype, pin_memory=device.type == "cuda").to(device, non_blocking=True)
