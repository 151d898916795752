"""One random hypervector per concept, and the encoding of examples with them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lensd_vsa_probe.algebra import bind, bundle, random_hypervectors
from lensd_vsa_probe.corpus import Example, concept


@dataclass(frozen=True, slots=True)
class Codebook:
    """``concepts`` sorted; ``vectors`` [concept, dim], drawn from ``seed`` alone."""

    concepts: tuple[str, ...]
    seed: int
    vectors: Tensor
    index: dict[str, int]

    @classmethod
    def draw(cls, concepts: Sequence[str], dim: int, seed: int) -> Self:
        """Equal arguments give equal vectors, in any order of ``concepts``."""
        ordered = tuple(sorted({concept(word) for word in concepts}))
        vectors = random_hypervectors(len(ordered), dim, seed)
        return cls(ordered, seed, vectors, {word: i for i, word in enumerate(ordered)})

    @property
    def dim(self) -> int:
        """D."""
        return self.vectors.shape[1]

    def __len__(self) -> int:
        return len(self.concepts)

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and concept(word) in self.index

    def __getitem__(self, word: str) -> Tensor:
        """[dim]. Raises KeyError for what is not a concept."""
        return self.vectors[self.index[concept(word)]]

    def digest(self) -> str:
        """SHA-256 of the signs: shows whether another machine drew the same vectors."""
        return hashlib.sha256((self.vectors > 0).to(torch.uint8).numpy().tobytes()).hexdigest()

    def encode(self, example: Example) -> Tensor:
        """[dim]: N(sum of bound pairs and loose features); one part alone stays as it is."""
        return self.encode_all([example])[0]

    def encode_all(self, examples: Sequence[Example]) -> Tensor:
        """[example, dim]; examples of one shape are encoded together."""
        encoded = torch.empty(len(examples), self.dim)
        shapes: dict[tuple[int, int], list[int]] = {}
        for row, example in enumerate(examples):
            loose = len(set(map(concept, example.features)))
            shapes.setdefault((len(example.pairs), loose), []).append(row)
        for rows in shapes.values():
            encoded[rows] = self._encode_alike([examples[row] for row in rows])
        return encoded

    def _encode_alike(self, examples: Sequence[Example]) -> Tensor:
        parts: list[Tensor] = []
        for number in range(len(examples[0].pairs)):
            left, right = ([e.pairs[number][side] for e in examples] for side in (0, 1))
            parts.append(bind(self._rows(left), self._rows(right)))
        features = [list(dict.fromkeys(map(concept, e.features))) for e in examples]
        parts += [self._rows([own[i] for own in features]) for i in range(len(features[0]))]
        return bundle(torch.stack(parts)) if len(parts) > 1 else parts[0]

    def _rows(self, words: Sequence[str]) -> Tensor:
        return self.vectors[[self.index[concept(word)] for word in words]]
