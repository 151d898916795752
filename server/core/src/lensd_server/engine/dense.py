"""Dense arrays of an analyzer as NumPy sees them, with the element type the wire gives them."""

from typing import Any, NamedTuple, Self

import numpy as np

from lensd_server.engine.plain import Unsound

MAX_RANK = 8
#: What the contract's DataType holds.
_ELEMENTS = frozenset(
    ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
)


class Dense(NamedTuple):
    """Elements in host memory, and their type; bfloat16 is seen as int16."""

    array: np.ndarray[Any, Any]
    element: str

    def copy(self) -> Self:
        """The same in memory of its own."""
        return self._replace(array=self.array.copy())

    def as_torch(self) -> Any:
        """A tensor of the same memory."""
        import torch

        tensor = torch.from_numpy(self.array)
        return tensor.view(torch.bfloat16) if self.element == "bfloat16" else tensor


def as_array(data: Any) -> Dense:
    """The elements of ``data`` in host memory.

    Nothing is copied that is dense and on the host already. Raises Unsound for what the wire has no
    type for.
    """
    if hasattr(data, "detach"):
        tensor = _on_host(data)
        if tensor.is_sparse or str(tensor.layout) != "torch.strided":
            raise Unsound("is not dense")
        tensor, element = tensor.contiguous(), str(tensor.dtype).removeprefix("torch.")
        if element == "bfloat16":
            import torch

            return Dense(tensor.view(torch.int16).numpy(), element)
        array = tensor.numpy() if element in _ELEMENTS else np.empty(0)
    else:
        try:
            array = np.asarray(data)
        except (ValueError, TypeError, OverflowError):
            raise Unsound("is not an array: its rows differ in length, or its members in kind") from None
        element = array.dtype.name
    if element not in _ELEMENTS:
        raise Unsound(f"the wire has no type for {element[:40]} elements")
    if array.ndim > MAX_RANK:
        raise Unsound(f"has {array.ndim} dimensions, at most {MAX_RANK} are carried")
    return Dense(array, element)


def _on_host(tensor: Any) -> Any:
    """``tensor`` in host memory and as it is written. Only what is needed: with each operation torch hands the
    interpreter over, and gets it back when others have had their turn."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.device.type != "cpu":
        tensor = tensor.cpu()
    return tensor.resolve_neg() if tensor.is_neg() else tensor
