"""Whether a model that reads on from keys and values gives what it gives for the whole text.

Found out on the model itself, like every other promise about it; one that fails is never continued.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lensd_api import Site
from lensd_server.engine.anatomy.capture import run_gathers
from lensd_server.engine.anatomy.gather import GatherGroup
from lensd_server.engine.anatomy.past import LaneCache, Past
from lensd_server.engine.anatomy.probe import probe_tokens
from lensd_server.engine.anatomy.skeleton import rows_of
from lensd_server.engine.anatomy.structure import Structure
from lensd_server.engine.device_faults import is_beyond_repair, is_out_of_memory

#: Past and new tokens of the lanes that are tried together.
_SPLITS = ((7, 5), (3, 2), (0, 4))


@dataclass(frozen=True, slots=True)
class Continuation:
    """``bytes_per_token`` of keys and values; ``problem`` says why the model is never continued."""

    bytes_per_token: int = 0
    problem: str = ""

    def __bool__(self) -> bool:
        return not self.problem


@torch.inference_mode()
def check_continuation(structure: Structure) -> Continuation:
    """Reads a short text whole and in parts, several lanes with pasts of unequal lengths at once."""
    tokens = probe_tokens(structure.skeleton)[0]
    if len(tokens) < max(past + new for past, new in _SPLITS):
        return Continuation(problem="its context is too short to try")
    try:
        expected = rows_of(structure.skeleton.module(input_ids=tokens[None], use_cache=False).logits)
        pasts = [_read(structure, [None], [tokens[:past]])[0][0] if past else None for past, _ in _SPLITS]
        found = _follow(structure, tokens, pasts)
    except Exception as error:  # the model's own code, used in a way it may not know
        # On a GPU it may be the device's: whoever asked knows that.
        if (
            is_out_of_memory(error)
            or is_beyond_repair(error)
            or (tokens.is_cuda and isinstance(error, RuntimeError))
        ):
            raise
        return Continuation(problem=f"it fails when it reads on ({type(error).__name__})")
    gap = max(_gap(logits, expected[own]) for logits, own in found)
    limit = max(1e-4, 16 * torch.finfo(expected.dtype).eps)
    if not gap <= limit * float(expected.float().abs().max()):
        return Continuation(problem=f"a text read in parts is off by {gap:.1e} in its logits")
    one = next(past for past in pasts if past is not None)
    return Continuation(bytes_per_token=one.nbytes // len(one))


def _follow(structure: Structure, tokens: Tensor, pasts: Sequence[Past | None]) -> list[tuple[Tensor, slice]]:
    """Logits, and of which tokens they are: all lanes, then two of them, then these in the same place."""
    own = [slice(past, past + new) for past, new in _SPLITS]
    kept: Sequence[Past | None] = pasts
    found: list[tuple[Tensor, slice]] = []
    for spare in (0, 2, 0):
        kept, logits = _read(structure, kept, [tokens[part] for part in own], spare)
        found += zip(logits, own, strict=True)
        kept, own = kept[-2:], [slice(part.stop, part.stop + 2) for part in own[-2:]]
    return found


def _read(
    structure: Structure, pasts: Sequence[Past | None], texts: Sequence[Tensor], spare: int = 0
) -> tuple[list[Past], list[Tensor]]:
    """What every lane has read afterwards, and its logits [new, vocab]."""
    lengths = [len(text) for text in texts]
    width = max(lengths)
    cache = LaneCache(pasts, width, n_layers=len(structure.skeleton.blocks), spare=spare)
    ids = torch.zeros(len(texts), width, dtype=torch.long)
    mask = torch.zeros(len(texts), cache.offset + width, dtype=torch.long)
    for lane, text in enumerate(texts):
        ids[lane, : len(text)] = text
        mask[lane, cache.begins(lane) : cache.offset + len(text)] = 1
    positions = tuple(tuple(range(length)) for length in lengths)
    group = GatherGroup(frozenset({Site.LOGITS}), (), tuple(range(len(texts))), positions)
    logits = run_gathers(structure, ids, mask, None, lengths, (group,), cache)[0][Site.LOGITS]
    return cache.kept(lengths), list(logits.split(lengths))


def _gap(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).abs().max())
