"""Directions pulled back through frozen norms, so that every contribution is one dot product.

With its statistics frozen, a norm ``gain * (x - centre * mean x) * s + bias`` is affine in x. A
read-out direction after the norm is therefore one direction before it; that of a sub-layer with a
post-norm is pulled back once more. No weight is folded or changed, no vector is pushed forward.
Source: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits".
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from lensd_api import ModelView, Norm, Write


def widen(tensor: Tensor) -> Tensor:
    """``tensor`` in fp32, or as it is when wider."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def through_gain(direction: Float[Tensor, "*batch d_model"], norm: Norm) -> Float[Tensor, "*batch d_model"]:
    """``direction`` pulled back through gain and centring, but not the scale ``s``."""
    pulled = direction if norm.gain is None else direction * widen(norm.gain)
    # Centring is symmetric: taking the mean off x or off the direction is the same.
    return pulled - pulled.mean(-1, keepdim=True) if norm.centre else pulled


@dataclass(frozen=True, slots=True, eq=False)
class FrozenRead:
    """A direction read out after the final norm, as seen from the residual stream.

    ``linear`` lacks the norm's scale; ``pulled = linear * s`` turns a write c into its
    contribution ``pulled . c``. ``constant`` is what the norm's bias adds.
    """

    residual: Float[Tensor, "pos d_model"]
    direction: Float[Tensor, "pos d_model"]
    linear: Float[Tensor, "pos d_model"]
    pulled: Float[Tensor, "pos d_model"]
    constant: Float[Tensor, "pos"] | None
    norm: Norm | None

    def at(self, rows: Int64[Tensor, "n"]) -> "FrozenRead":
        """The same at chosen positions, repeated as often as named."""
        constant = None if self.constant is None else self.constant[rows]
        return FrozenRead(
            self.residual[rows],
            self.direction[rows],
            self.linear[rows],
            self.pulled[rows],
            constant,
            self.norm,
        )

    def effects(self, writes: Float[Tensor, "pos n d_model"]) -> Float[Tensor, "pos n"]:
        """Change of the logit when each write is subtracted alone and the norm recomputed."""
        if self.norm is None:
            return torch.einsum("pnd,pd->pn", writes, self.linear)
        without = self.residual[:, None] - writes
        scale = self.norm.inverse_std(without)[..., 0]
        whole = torch.einsum("pd,pd->p", self.residual, self.pulled)
        return whole[:, None] - scale * torch.einsum("pnd,pd->pn", without, self.linear)


def freeze_read(
    residual: Float[Tensor, "pos d_model"], direction: Float[Tensor, "pos d_model"], view: ModelView
) -> FrozenRead:
    """Freezes the final norm's statistics at ``residual``, the stream it saw."""
    norm, x = view.final_norm, widen(residual)
    if norm is None:
        return FrozenRead(x, direction, direction, direction, None, None)
    linear = through_gain(direction, norm)
    constant = None if norm.bias is None else direction @ widen(norm.bias)
    return FrozenRead(x, direction, linear, linear * widen(norm.inverse_std(x)), constant, norm)


@dataclass(frozen=True, slots=True, eq=False)
class FrozenWrite:
    """One sub-layer's way into the stream at the asked positions, its post-norm frozen.

    ``pulled`` turns a term of the raw output (``inputs @ weight + bias``) into its contribution;
    ``bias`` is what the biases of projection and post-norm contribute, ``None`` without any.
    """

    write: Write
    pulled: Float[Tensor, "pos d_model"]
    bias: Float[Tensor, "pos"] | None
    scale: Float[Tensor, "pos 1"] | None

    def at(self, rows: Int64[Tensor, "n"]) -> "FrozenWrite":
        """The same at chosen positions, repeated as often as named."""
        bias = None if self.bias is None else self.bias[rows]
        scale = None if self.scale is None else self.scale[rows]
        return FrozenWrite(self.write, self.pulled[rows], bias, scale)

    def written(self, raw: Float[Tensor, "pos n d_model"]) -> Float[Tensor, "pos n d_model"]:
        """What terms of the raw output write to the stream."""
        norm = self.write.post_norm
        if norm is not None and self.scale is not None:
            raw = raw - raw.mean(-1, keepdim=True) if norm.centre else raw
            raw = raw if norm.gain is None else raw * widen(norm.gain)
            raw = raw * self.scale[:, None]
        return raw * self.write.multiplier

    def bias_written(self) -> Float[Tensor, "pos 1 d_model"]:
        """What the biases write to the stream."""
        none = torch.zeros_like(self.pulled)[:, None]
        total = none if self.write.bias is None else self.written(none + widen(self.write.bias))
        norm = self.write.post_norm
        if norm is not None and norm.bias is not None:
            total = total + widen(norm.bias) * self.write.multiplier
        return total


def freeze_write(read: FrozenRead, write: Write, inputs: Float[Tensor, "pos n_in"]) -> FrozenWrite:
    """Freezes the post-norm of ``write``, where there is one, at the output for ``inputs``."""
    pulled = read.pulled if write.multiplier == 1 else read.pulled * write.multiplier
    scale, bias = None, None
    norm = write.post_norm
    if norm is not None:
        raw = widen(inputs) @ widen(write.weight)
        raw = raw if write.bias is None else raw + widen(write.bias)
        bias = None if norm.bias is None else pulled @ widen(norm.bias)
        scale = widen(norm.inverse_std(raw))
        pulled = through_gain(pulled, norm) * scale
    if write.bias is not None:
        own = pulled @ widen(write.bias)
        bias = own if bias is None else bias + own
    return FrozenWrite(write, pulled, bias, scale)
