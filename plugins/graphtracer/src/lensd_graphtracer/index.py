"""Which earlier step a step refers to, found while the log is read: an inverted index over terms.

Time is linear in the text; memory is bounded by ``MAX_TERMS`` terms of two places each.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lensd_graphtracer.references import Sort, Term

#: Terms kept. Later new ones are not indexed any more; the index says how many.
MAX_TERMS = 2_000_000
#: How much sharing one term of a sort says, times its rarity.
_WORTH = {
    Sort.URL: 3.0,
    Sort.QUOTE: 2.0,
    Sort.NAME: 1.5,
    Sort.NUMBER: 1.5,
    Sort.IDENTIFIER: 1.0,
    Sort.PHRASE: 0.5,
}


@dataclass(slots=True)
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

    _postings: dict[str, Posting] = field(default_factory=dict[str, Posting])
    _steps: int = 0
    #: Terms not indexed because the index was full.
    dropped: int = 0

    def posting(self, key: str) -> Posting | None:
        """Where ``key`` was said so far."""
        return self._postings.get(key)

    def sources(self, terms: Sequence[Term]) -> Mapping[int, Evidence]:
        """Earlier steps that ``terms`` may come from, with the evidence. Does not add them.

        A term's worth is its sort's times its rarity among the steps so far, split between the step
        that brought it in and the one that said it last.
        """
        weights: dict[int, float] = {}
        best: dict[int, tuple[float, Term]] = {}
        for term in terms:
            posting = self._postings.get(term.key)
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
            posting = self._postings.get(term.key)
            if posting is not None:
                posting.last, posting.steps = step, posting.steps + 1
            elif len(self._postings) < MAX_TERMS:
                self._postings[term.key] = Posting(step, step, 1)
            else:
                self.dropped += 1


def _shares(posting: Posting) -> tuple[tuple[int, float], ...]:
    if posting.first == posting.last:
        return ((posting.first, 1.0),)
    return ((posting.first, 0.5), (posting.last, 0.5))
