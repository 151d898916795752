"""From the last block to the logits: final norm, output head, scale and soft-cap, verified."""

from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from lensd_server.engine.anatomy.identity import deviation, tolerance
from lensd_server.engine.anatomy.norms import VerifiedNorm, derive_norm
from lensd_server.engine.anatomy.probe import Trace
from lensd_server.engine.anatomy.skeleton import Skeleton


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """``scale * raw``, then ``softcap * tanh(. / softcap)`` where there is a cap."""

    scale: float = 1.0
    softcap: float | None = None

    def __call__(self, raw: Tensor) -> Tensor:
        """The model's logits for the output head's own result."""
        scaled = raw if self.scale == 1.0 else raw * self.scale
        return scaled if self.softcap is None else self.softcap * torch.tanh(scaled / self.softcap)


@dataclass(frozen=True, slots=True)
class ReadOut:
    """How the residual stream becomes logits. ``problem`` says what is not understood of it."""

    norm_module: nn.Module | None
    norm: VerifiedNorm | None
    transform: LogitTransform
    problem: str = ""


def derive_read_out(skeleton: Skeleton, trace: Trace) -> ReadOut:
    """Finds norm and logit transform of a traced model, and what of them does not fit."""
    last = trace.blocks[-1].exit
    head = trace.outer[skeleton.head]
    transform = _transform(skeleton.config, head.output, trace.logits)
    module = _final_norm(skeleton, trace, last, head.input)
    norm = derive_norm(module, last) if module is not None else None
    if transform is None:
        problem = "the logits are no known scaling or soft-capping of the output head's result"
    elif norm is None and not torch.equal(head.input, last):
        problem = "what lies between the last block and the output head is no norm of a known form"
    else:
        problem = ""
    return ReadOut(module, norm, transform or LogitTransform(), problem)


def _final_norm(skeleton: Skeleton, trace: Trace, last: Tensor, read: Tensor) -> nn.Module | None:
    for module in skeleton.decoder.children():
        call = trace.outer.get(module)
        if call is None or not call.given or call.input.shape != last.shape:
            continue
        if torch.equal(call.input, last) and torch.equal(call.output, read):
            return module
    return None


def _transform(config: Any, raw: Tensor, logits: Tensor) -> LogitTransform | None:
    scales = [1.0]
    if isinstance(factor := getattr(config, "logit_scale", None), int | float):
        scales.append(float(factor))
    if isinstance(divisor := getattr(config, "logits_scaling", None), int | float) and divisor:
        scales.append(1.0 / divisor)
    caps: list[float | None] = [None]
    if isinstance(cap := getattr(config, "final_logit_softcapping", None), int | float) and cap:
        caps.append(float(cap))
    limit = tolerance(raw.dtype)
    for scale, cap in product(scales, caps):
        transform = LogitTransform(scale, cap)
        if deviation(transform(raw.double()), logits) <= limit:
            return transform
    return None
