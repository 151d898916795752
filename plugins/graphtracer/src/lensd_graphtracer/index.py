"""Which earlier step a step refers to, found while the log is read: an inverted index over terms.

Time is linear in the text. Keys are kept as 64-bit hashes and places in arrays, so memory is
bounded by ``MAX_TERMS``.
"""

import math
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lensd_graphtracer.references import Sort, Term

#: Terms kept, at about 180 bytes each. Later new ones are not indexed; the index counts them.
MAX_TERMS = 1_000_000
#: How much sharing one term of a sort says, times its rarity.
_WORTH = {
    Sort.URL: 3.0,
    Sort.QUOTE: 2.0,
    Sort.NAME: 1.5,
    Sort.NUMBER: 1.5,
    Sort.IDENTIFIER: 1.0,
    Sort.PHRASE: 0.5,
}


@dataclass(frozen=True, slots=True)
class Posting:
    """Where a term was said: first, last, and in how many steps."""

    first: int
    last: int
    steps: int


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one step repeats of another: the strongest shared term with its place in the later step."""

    weight: float
    sort: Sort
    start: int
    end: int


@dataclass(slots=True)
class TermIndex:
    """Terms of the steps so far."""

    _slots: dict[int, int] = field(default_factory=dict[int, int])
    _first: "array[int]" = field(default_factory=lambda: array("l"))
    _last: "array[int]" = field(default_factory=lambda: array("l"))
    _count: "array[int]" = field(default_factory=lambda: array("l"))
    _steps: int = 0
    #: Terms not indexed because the index was full.
    dropped: int = 0

    def posting(self, key: str) -> Posting | None:
        """Where ``key`` was said so far."""
        slot = self._slots.get(hash(key))
        if slot is None:
            return None
        return Posting(self._first[slot], self._last[slot], self._count[slot])

    def sources(self, terms: Sequence[Term]) -> Mapping[int, Evidence]:
        """Earlier steps that ``terms`` may come from, with the evidence. Does not add them.

        A term's worth is its sort's times its rarity among the steps so far, split between the step
        that brought it in and the one that said it last.
        """
        weights: dict[int, float] = {}
        best: dict[int, tuple[float, Term]] = {}
        for term in terms:
            posting = self.posting(term.key)
            if posting is None:
                continue
            worth = _WORTH[term.sort] * math.log((1 + self._steps) / posting.steps)
            for step, share in _shares(posting):
                given = share * worth
                weights[step] = weights.get(step, 0.0) + given
                if step not in best or given > best[step][0]:
                    best[step] = (given, term)
        return {
            step: Evidence(weights[step], term.sort, term.start, term.end) for step, (_, term) in best.items()
        }

    def add(self, step: int, terms: Sequence[Term]) -> None:
        """Enters the terms of ``step``, which must come after all others."""
        self._steps += 1
        for term in terms:
            key = hash(term.key)
            slot = self._slots.get(key)
            if slot is not None:
                self._last[slot] = step
                self._count[slot] += 1
            elif len(self._slots) < MAX_TERMS:
                self._slots[key] = len(self._first)
                self._first.append(step)
                self._last.append(step)
                self._count.append(1)
            else:
                self.dropped += 1


def _shares(posting: Posting) -> tuple[tuple[int, float], ...]:
    if posting.first == posting.last:
        return ((posting.first, 1.0),)
    return ((posting.first, 0.5), (posting.last, 0.5))
