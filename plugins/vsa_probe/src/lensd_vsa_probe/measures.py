"""How good decoded hypervectors are, beside what needs no model at all."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lensd_vsa_probe.algebra import bind, similarities
from lensd_vsa_probe.codebook import Codebook
from lensd_vsa_probe.corpus import Example
from lensd_vsa_probe.listing import integers

DEPTHS = (1, 3, 5)


@dataclass(frozen=True, slots=True)
class Scores:
    """Means over ``rows`` texts; ``at[k]``: share whose target is among the first k of the codebook.

    For bundles, which ask for nothing, ``at`` is empty and ``recall`` is the share of a text's
    features among as many best concepts.
    """

    rows: int
    at: dict[int, float]
    recall: float | None
    bit_accuracy: float
    cosine: float

    def columns(self) -> dict[str, float | int | None]:
        """One row of a table."""
        probing = {f"probing_at_{k}": self.at.get(k) for k in DEPTHS}
        return {
            "rows": self.rows,
            **probing,
            "recall": self.recall,
            "bit_accuracy": self.bit_accuracy,
            "cosine": self.cosine,
        }


def score(decoded: Tensor, examples: Sequence[Example], codebook: Codebook) -> Scores | None:
    """``decoded`` [example, dim], bipolar, read by the key rule; ``None`` for no examples."""
    if not examples:
        return None
    targets = codebook.encode_all(examples)
    cosine = (decoded * targets).mean().item()  # bipolar vectors: the mean product is the cosine
    paired = all(example.pairs for example in examples)
    return Scores(
        rows=len(examples),
        at=_probing(decoded, examples, codebook) if paired else {},
        recall=None if paired else _recall(decoded, examples, codebook),
        bit_accuracy=(1 + cosine) / 2,
        cosine=cosine,
    )


def constant(examples: Sequence[Example], codebook: Codebook) -> Tensor:
    """[example, dim] of -1: what a two-pair encoding agrees with in three places of four."""
    return torch.full((len(examples), codebook.dim), -1.0)


def token_hits(found: Tensor, wanted: Tensor) -> dict[int, float]:
    """``found`` [n, depth] token ids, best first; the share of rows with ``wanted`` [n] in the first k."""
    hits = found == wanted[:, None]
    return {k: hits[:, :k].any(1).double().mean().item() for k in DEPTHS}


def _probing(decoded: Tensor, examples: Sequence[Example], codebook: Codebook) -> dict[int, float]:
    keys = torch.stack([codebook[example.key] for example in examples])
    wanted = torch.tensor([codebook.index[example.concepts[-1]] for example in examples])
    cosines = similarities(bind(decoded, keys), codebook.vectors)
    best = cosines.topk(min(max(DEPTHS), len(codebook)), dim=-1).indices
    return token_hits(best, wanted)


def _recall(decoded: Tensor, examples: Sequence[Example], codebook: Codebook) -> float:
    cosines = similarities(decoded, codebook.vectors)
    total = 0.0
    for row, example in enumerate(examples):
        inside = {codebook.index[word] for word in example.concepts}
        best = integers(cosines[row].topk(len(inside)).indices)
        total += len(inside.intersection(best)) / len(inside)
    return total / len(examples)
