"""How a decoded hypervector is asked: which of the text's own items are unbound from it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from torch import Tensor

from lensd_vsa_probe.algebra import bind, product, similarities
from lensd_vsa_probe.codebook import Codebook

Rule = Literal["key", "best", "oracle"]


@dataclass(frozen=True, slots=True)
class Query:
    """``items`` unbound, and the cosine of what is left with every concept [concept]."""

    items: tuple[str, ...]
    cosines: Tensor


def ask(decoded: Tensor, items: Sequence[str], codebook: Codebook) -> Query:
    """u_S = decoded * product of the items' vectors, compared with the codebook."""
    unbound = bind(decoded, product([codebook[item] for item in items], decoded))
    return Query(tuple(items), similarities(unbound, codebook.vectors))


def subsets(items: Sequence[str]) -> list[tuple[str, ...]]:
    """The empty one first, then by size."""
    return [chosen for size in range(len(items) + 1) for chosen in combinations(items, size)]


def strongest(query: Query, codebook: Codebook, but: Sequence[str] = ()) -> tuple[str, float]:
    """The concept of highest cosine that is not in ``but``."""
    allowed = query.cosines.clone()
    for item in but:
        allowed[codebook.index[item]] = -2.0
    best = int(allowed.argmax())
    return codebook.concepts[best], float(query.cosines[best])


def choose(
    queries: Sequence[Query], rule: Rule, items: Sequence[str], key: str, target: str, codebook: Codebook
) -> Query:
    """The query by which a text is read.

    ``key``: unbind the key, nothing else. ``best``: the subset that brings out a concept most
    strongly which the text does not name itself. Neither knows the answer. ``oracle`` does, as in the
    code published with the paper: it takes the subset that suits ``target``, so it shows what could be
    found by somebody who knows it already. Without items all that is left is the empty subset.
    """
    if rule == "oracle":
        return max(queries, key=lambda query: float(query.cosines[codebook.index[target]]))
    if rule == "best":
        return max(queries, key=lambda query: strongest(query, codebook, items)[1])
    wanted = (key,) if key else ()
    return next(query for query in queries if query.items == wanted)
