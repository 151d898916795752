"""Dense arrays of an analyzer as NumPy sees them, with the element type the wire gives them."""

from typing import Any

import numpy as np

from lensd_server.engine.plain import Unsound

MAX_RANK = 8
#: What the contract's DataType holds.
_ELEMENTS = frozenset(
    ("float16", "bfloat16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
)


def as_array(data: Any) -> tuple[np.ndarray[Any, Any], str]:
    """The elements, in host memory, and their type; bfloat16 is seen as int16.

    Nothing is copied that is dense and on the host already. Raises Unsound for what the wire has no
    type for.
    """
    if hasattr(data, "detach"):
        tensor = data.detach().cpu().resolve_conj().resolve_neg()
        if tensor.is_sparse or str(tensor.layout) != "torch.strided":
            raise Unsound("is not dense")
        tensor, element = tensor.contiguous(), str(tensor.dtype).removeprefix("torch.")
        if element == "bfloat16":
            import torch

            return tensor.view(torch.int16).numpy(), element
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
    return array, element
