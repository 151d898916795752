"""Whether anybody wrote into a model's weights, by torch's own count of in-place writes."""

from collections.abc import Iterable
from operator import attrgetter

from torch import Tensor


class WeightsChanged(Exception):
    """An analyzer's reduce wrote into the weights it was given to read."""


class WriteCount:
    """Asked before and after foreign code; takes a fraction of a microsecond a tensor.

    Sees writes through views and ``detach()``; not through ``.data`` or ``.numpy()``, which
    nobody does by mistake.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        # Tensors made in inference mode are not counted.
        self._tensors = [tensor for tensor in tensors if not tensor.is_inference()]

    def now(self) -> int:
        """In-place writes into any of the tensors so far."""
        return sum(map(attrgetter("_version"), self._tensors))
