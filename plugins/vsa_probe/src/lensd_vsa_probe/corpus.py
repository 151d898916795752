"""What a probe is fitted on: texts with the concepts they hold, bound in pairs or loose.

One shape serves all encodings of the method: an analogy is two pairs, key and value are one, a single
word is one feature, a question is a bundle of several.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lensd_api import InvalidParams

#: Fewer rows than this leave nothing to hold out.
LEAST_ROWS = 10

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Example:
    """One text and what it encodes. Concepts keep their spelling; :func:`concept` folds it.

    ``key`` and ``target``: which concept unbinds the answer, and the answer; empty for bundles.
    """

    text: str
    pairs: tuple[Pair, ...] = ()
    features: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The last pair's first concept."""
        return self.pairs[-1][0] if self.pairs else ""

    @property
    def target(self) -> str:
        """The last pair's second concept: what the text asks for."""
        return self.pairs[-1][1] if self.pairs else ""

    @property
    def items(self) -> tuple[str, ...]:
        """The concepts the text itself names, folded: all of its pairs' but the target."""
        named = [*self.features, *(word for pair in self.pairs for word in pair)]
        if self.pairs:
            named.pop()
        return tuple(dict.fromkeys(concept(word) for word in named))

    @property
    def concepts(self) -> tuple[str, ...]:
        """Every concept, folded, each once."""
        return tuple(dict.fromkeys((*self.items, *([concept(self.target)] if self.pairs else []))))


@dataclass(frozen=True, slots=True)
class Corpus:
    """Examples without duplicates. ``template`` is empty when texts were given as they are."""

    examples: tuple[Example, ...]
    template: str
    duplicates: int = 0
    #: Rows whose text is another row's, with another target.
    conflicts: int = 0

    @property
    def is_paired(self) -> bool:
        """Whether every example asks for a target, so that it can be read by unbinding."""
        return all(example.pairs for example in self.examples)

    def spellings(self) -> dict[str, str]:
        """The first spelling of every concept, sorted by concept."""
        words: dict[str, str] = {}
        for example in self.examples:
            for word in (*example.features, *(w for pair in example.pairs for w in pair)):
                words.setdefault(concept(word), word)
        return dict(sorted(words.items()))

    def related(self) -> dict[str, set[str]]:
        """Concepts that form a pair somewhere in the corpus."""
        found: dict[str, set[str]] = {}
        for example in self.examples:
            for left, right in example.pairs:
                found.setdefault(concept(left), set()).add(concept(right))
                found.setdefault(concept(right), set()).add(concept(left))
        return found


def concept(word: str) -> str:
    """The name of a concept: spelling without case and outer blanks."""
    return word.strip().lower()


def fill(template: str, a: str, b: str, c: str) -> str:
    """The text of an analogy. ``template`` is data: only the three names are replaced, in one pass."""
    parts: list[str] = []
    for piece in split_template(template):
        parts.append({"{a}": a, "{b}": b, "{c}": c}.get(piece, piece))
    return "".join(parts)


def split_template(template: str) -> list[str]:
    """``template`` cut at its three places. Raises InvalidParams unless each occurs once, in order."""
    rest, pieces = template, list[str]()
    for place in ("{a}", "{b}", "{c}"):
        before, found, rest = rest.partition(place)
        if not found or place in rest:
            raise InvalidParams.field("template", "must hold {a}, {b} and {c}, each once and in this order")
        pieces += [before, place]
    return [*pieces, rest]


def from_analogies(rows: Iterable[Sequence[str]], template: str) -> Corpus:
    """Rows A, B, C, D of ``A : B = C : D``. Raises InvalidParams."""
    split_template(template)
    examples = [Example(fill(template, a, b, c), ((a, b), (c, d))) for a, b, c, d in rows]
    pairs = {tuple(map(concept, pair)) for example in examples for pair in example.pairs}
    if len(pairs) == 1:
        raise InvalidParams.field("analogies", "only one pair in all of them: an analogy compares two")
    return from_examples(examples, template, "analogies")


def from_examples(examples: Iterable[Example], template: str, field: str) -> Corpus:
    """Drops repeated rows, counts contradicting ones. Raises InvalidParams when too few are left."""
    unique: dict[tuple[object, ...], Example] = {}
    targets: dict[str, set[str]] = {}
    given = 0
    for example in examples:
        given += 1
        folded = tuple(tuple(map(concept, pair)) for pair in example.pairs)
        unique.setdefault((example.text, folded, frozenset(map(concept, example.features))), example)
        targets.setdefault(example.text, set()).add(concept(example.target))
    if len(unique) < LEAST_ROWS:
        raise InvalidParams.field(field, f"{len(unique)} different rows; fitting needs at least {LEAST_ROWS}")
    conflicts = sum(len(targets[example.text]) > 1 for example in unique.values())
    return Corpus(tuple(unique.values()), template, given - len(unique), conflicts)
