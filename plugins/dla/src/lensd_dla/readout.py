"""What is read out: from a target token, a contrast or a given vector to a direction.

Resolved on the host, before anything runs, so that a wrong one is refused at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lensd_api import FieldViolation, InvalidParams, InvalidTensor, ModelCard
from lensd_dla.params import DlaParams


@dataclass(frozen=True, slots=True, eq=False)
class ReadOut:
    """A token's logit, the difference of two, or any direction [d_model].

    ``target`` is one token for all positions, one each, or ``None`` for the top prediction.
    """

    target: int | tuple[int, ...] | None = None
    contrast: int | None = None
    direction: Tensor | None = None


def resolve_readout(params: DlaParams, card: ModelCard, tensors: Mapping[str, Tensor]) -> ReadOut:
    """Raises InvalidParams and InvalidTensor where the read-out makes no sense for the model."""
    unused = sorted(set(tensors) - {params.direction})
    if unused:
        raise InvalidTensor(
            f"tensor {unused[0]!r} is not used: name it in the parameter direction, or leave it out",
            violations=[FieldViolation(f"tensors.{unused[0]}", "not used")],
        )
    if params.direction is not None:
        return ReadOut(direction=_direction(params.direction, card.anatomy.d_model, tensors))
    target = None if params.target is None else resolve_token(params.target, card, "target")
    contrast = None if params.contrast is None else resolve_token(params.contrast, card, "contrast")
    if contrast is not None and contrast == target:
        raise InvalidParams.field(
            "contrast", f"is the target itself (token {target}): the difference is zero everywhere"
        )
    return ReadOut(target, contrast)


def resolve_token(token: str | int, card: ModelCard, field: str) -> int:
    """The id of ``token``, which must be a single one. Raises InvalidParams naming ``field``."""
    if isinstance(token, int):
        return _in_vocabulary(token, card, field)
    pieces = card.encode(token, special_tokens=False, field=field)
    if len(pieces) == 1:
        return _in_vocabulary(pieces[0], card, field)
    listed = ", ".join(f"{card.token_text(piece)!r} ({piece})" for piece in pieces[:16])
    hint = ""
    if not token.startswith(" ") and len(card.encode(" " + token, special_tokens=False, field=field)) == 1:
        hint = f"; {' ' + token!r}, with a leading space, is one token"
    raise InvalidParams.field(
        field,
        f"{token!r} is {len(pieces)} tokens: {listed}; give one of them, or its id{hint}",
        reason="TARGET_NOT_ONE_TOKEN",
    )


def _in_vocabulary(token: int, card: ModelCard, field: str) -> int:
    # A tokenizer may know more tokens than the model.
    if token >= card.anatomy.vocab_size:
        raise InvalidParams.field(
            field, f"token id {token} is out of range: the vocabulary has {card.anatomy.vocab_size}"
        )
    return token


def _direction(name: str, d_model: int, tensors: Mapping[str, Tensor]) -> Tensor:
    if name not in tensors:
        sent = ", ".join(sorted(tensors)) or "none"
        raise InvalidParams.field("direction", f"the request has no tensor named {name!r} (it has: {sent})")
    tensor, field = tensors[name], f"tensors.{name}"
    if tuple(tensor.shape) != (d_model,):
        problem = f"shape {list(tensor.shape)}, but a direction of this model has shape [{d_model}]"
    elif tensor.dtype is torch.bool or tensor.is_complex():
        problem = f"element type {tensor.dtype}, but a direction is made of real numbers"
    elif not bool(torch.isfinite(tensor).all()):
        problem = f"{int((~torch.isfinite(tensor)).sum())} of {d_model} elements are NaN or infinite"
    else:
        return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    raise InvalidTensor(f"tensor {name!r}: {problem}", violations=[FieldViolation(field, problem)])
