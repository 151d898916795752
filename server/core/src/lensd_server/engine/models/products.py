"""Which of torch's two libraries multiplies the float32 matrices of a model on this CPU.

torch leaves them to MKL, which runs at half of its speed and less on processors of other makers than its own;
oneDNN, which torch brings along as well, does not. Which is quicker here is measured on the model's own weights,
and only what agrees with torch's own product is used. Weights stay as they are, and in one piece.
"""

import os
import statistics
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lensd_server.engine.anatomy.skeleton import input_by_output

#: Rows of products that stand for all with more than one row: those of a short text alone, and of a batch. Which is
#: quicker may change between them: on an Intel processor oneDNN took 0.75 of MKL's time for 16 and 1.2 for 64.
ROWS = (16, 64)
#: How much quicker it has to be, so that noise decides nothing.
GAIN = 0.9
REPEATS = 5
#: Seconds after which no product is timed again: those of a large model differ by more than noise, and whoever else
#: computes on the CPU waits.
LONGEST_S = 0.1
#: oneDNN keeps a kernel, with half a megabyte and more around it, for each shape of a product: by itself a thousand
#: in every thread. A forward needs one a kind of projection; making it anew takes a third of a millisecond.
KERNELS = 16
#: Weights with fewer numbers are multiplied in microseconds, whoever does it.
LEAST_NUMBERS = 2**16

#: ``(inputs [..., n_in], weight [n_out, n_in], bias [n_out] or None)`` to ``[..., n_out]``.
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def one_dnn(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """oneDNN's product, which has no gradient."""
    compute: Any = torch.ops.mkldnn._linear_pointwise.default  # as compiled models call it
    return compute(inputs, weight, bias, "none", [], "")


class OneDnnLinear(nn.Linear):
    """An ``nn.Linear`` with oneDNN's product of at least ``least_rows`` rows, where no gradient is wanted."""

    least_rows: int

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - as torch names it
        """The projection of ``input`` [..., n_in]."""
        if _is_for_torch(input, self.least_rows):
            return super().forward(input)
        return one_dnn(input, self.weight, self.bias)


class OneDnnConv1D(Conv1D):
    """The same of a projection that keeps its weight as [n_in, n_out]."""

    least_rows: int

    def forward(self, x: Tensor) -> Tensor:
        """The projection of ``x`` [..., n_in]."""
        if _is_for_torch(x, self.least_rows):
            return super().forward(x)
        return one_dnn(x, self.weight.T, self.bias)


_ONE_DNN: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: OneDnnLinear, Conv1D: OneDnnConv1D}


def use_quickest(module: nn.Module) -> None:
    """Has the projections of ``module``, which is on the CPU, multiply with what is quickest there."""
    # Read when its first product is computed; whoever runs the process may have said otherwise.
    for cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
        os.environ.setdefault(cache, str(KERNELS))
    least: dict[tuple[int, ...], int | None] = {}
    for projection in module.modules():
        # A subclass may mean something else by its forward.
        quick = _ONE_DNN.get(type(projection))
        if quick is None or not _is_worth_it(weight := input_by_output(projection).T):
            continue
        shape = (*weight.shape, *weight.stride())
        if shape not in least:
            least[shape] = least_rows(one_dnn, weight, cast("Tensor | None", projection.bias))
        if (rows := least[shape]) is not None:
            projection.__class__ = quick
            projection.least_rows = rows  # pyright: ignore[reportArgumentType]


def library(module: nn.Module) -> str:
    """What multiplies the matrices of ``module``: ``"onednn"``, or ``"torch"`` for its own choice."""
    quick = any(isinstance(part, OneDnnLinear | OneDnnConv1D) for part in module.modules())
    return "onednn" if quick else "torch"


@torch.inference_mode()
def least_rows(product: Product, weight: Tensor, bias: Tensor | None) -> int | None:
    """From how many rows on ``product`` is quicker than torch's own: 1 or 2; ``None`` where it is not always, or wrong."""
    inputs = torch.randn((max(ROWS), weight.shape[1]), generator=torch.Generator().manual_seed(0))
    try:
        found = product(inputs[: min(ROWS)], weight, bias)
    except (AttributeError, RuntimeError):  # this build of torch, or this processor, has none
        return None
    expected = functional.linear(inputs[: min(ROWS)], weight, bias)
    if not torch.allclose(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())):
        return None
    if not all(_is_quicker(product, inputs[:rows], weight, bias) for rows in ROWS):
        return None
    return 1 if _is_quicker(product, inputs[:1], weight, bias) else 2


def _is_quicker(product: Product, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """By the medians of both, in turns."""
    own, other = list[float](), list[float]()
    while len(own) < REPEATS and sum(own) + sum(other) < LONGEST_S:
        for compute, taken in ((functional.linear, own), (product, other)):
            began = time.perf_counter()
            compute(inputs, weight, bias)
            taken.append(time.perf_counter() - began)
    return statistics.median(other) <= GAIN * statistics.median(own)


def _is_worth_it(weight: Tensor) -> bool:
    return weight.dtype == torch.float32 and weight.numel() >= LEAST_NUMBERS


def _is_for_torch(inputs: Tensor, least: int) -> bool:
    return inputs.dim() < 2 or inputs.numel() < least * inputs.shape[-1] or torch.is_grad_enabled()
