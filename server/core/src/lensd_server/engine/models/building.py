"""Modules of transformers, built while other threads compute.

transformers builds a module in half precision under a default element type that is the whole process's: what other
threads create meanwhile would be in half precision as well, and of two modules that are built at once one gets the
other's. Here they are built one after another, and the default is the building thread's alone.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from transformers import modeling_utils

#: What creates a tensor, and takes the element type it is to have.
_CREATES: Callable[[], set[Callable[..., Any]]] = _device_constructors

# While a module is built, transformers also replaces functions of its own.
_one_at_a_time = threading.RLock()


class DefaultDtype(TorchFunctionMode):
    """Tensors that this thread creates without saying which element type are of ``dtype``, if they hold fractions."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Creates in the default, then converts: for a module that is built without its weights that is free."""
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        takes_default = func in _CREATES() and kwargs.get("dtype") is None and not _is_given(args)
        if takes_default and made.dtype == torch.get_default_dtype():
            return made.to(self._dtype)
        return made


def _is_given(args: tuple[Any, ...]) -> bool:
    """Whether what is created takes its element type from data."""
    return bool(args) and hasattr(args[0], "dtype")


@contextmanager
def _local_dtype(dtype: torch.dtype, model_class_name: str | None = None) -> Iterator[None]:
    """In place of transformers' own, around the making of a module, though not the reading of its weights."""
    if not dtype.is_floating_point:
        raise ValueError(f"{model_class_name or 'a model'} cannot be built in {dtype}: it holds no fractions")
    with _one_at_a_time, DefaultDtype(dtype):
        yield


def build_beside_others() -> None:
    """Has ``from_pretrained`` build modules like that from now on."""
    modeling_utils.local_torch_dtype = _local_dtype
