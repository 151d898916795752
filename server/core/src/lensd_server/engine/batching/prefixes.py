"""Which waiting rows begin alike, so that their beginning is read once. Pure.

Reading a beginning by itself costs the fixed price of one more forward, and saves its tokens for every
row but one.
"""

from bisect import bisect_left
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lensd_server.engine.batching.batch import Step

#: Shorter beginnings are not looked for.
SHORTEST = 16

#: More than there are tokens: a masked or moved one gets a number that no plain one has.
_SPAN = 2**32


@dataclass(frozen=True, slots=True)
class Unread:
    """What is left of a waiting row: one item a token, equal where what is read there is."""

    after: Hashable
    items: tuple[int, ...]


def unread(step: Step) -> Unread:
    """What :func:`plan_prefixes` has to know of ``step``."""
    row, own = step.row, range(step.start, step.stop)
    items = row.tokens[step.start : step.stop]
    if row.attention_mask is not None or row.position_ids is not None:
        seen = row.attention_mask or (1,) * step.stop
        places = row.position_ids or range(step.stop)
        items = tuple(
            row.tokens[i]
            if seen[i] and places[i] == i
            else row.tokens[i] + _SPAN * (1 + 2 * places[i] + seen[i])
            for i in own
        )
    return Unread(id(step.past), items)


def plan_prefixes(rows: Sequence[Unread], worth: float) -> list[int]:
    """Per row how many of its items to read first, together with others; 0 for no such beginning.

    ``worth`` is the fixed price of a forward, in tokens: at least twice that has to be saved, since
    keys and values have to be copied to every row as well.
    """
    found = [0] * len(rows)
    alike: dict[Hashable, list[int]] = {}
    for i, row in enumerate(rows):
        if len(row.items) >= SHORTEST:
            alike.setdefault((row.after, row.items[:SHORTEST]), []).append(i)
    for members in alike.values():
        same: dict[tuple[int, ...], list[int]] = {}
        for i in members:
            same.setdefault(rows[i].items, []).append(i)
        if len(same) > 1:
            # Sorted, those that have the longest beginning in common are neighbours.
            texts = sorted(same)
            for text, length in zip(texts, _beginnings(texts, 2 * worth), strict=True):
                for i in same[text]:
                    found[i] = length
    return found


def _beginnings(texts: Sequence[tuple[int, ...]], least: float) -> list[int]:
    """The beginning to read first of each of ``texts``, which are sorted."""
    shared = [common(one, other) for one, other in pairwise(texts)]
    found = [0] * len(texts)
    todo = [(0, len(texts))]
    while todo:
        start, stop = todo.pop()
        best = _most_saved(shared[start : max(start, stop - 1)])
        if best is None or best[2] * (best[1] - best[0]) < least:
            continue
        first, last, length = best[0] + start, best[1] + start, best[2]
        found[first : last + 1] = [length] * (last + 1 - first)
        todo += [(start, first), (last + 1, stop)]
    return found


def _most_saved(shared: Sequence[int]) -> tuple[int, int, int] | None:
    """First and last text, and the length they share, for which ``length * (texts - 1)`` is largest.

    The largest rectangle under a histogram, found with a stack of rising steps.
    """
    best: tuple[int, int, int] | None = None
    steps: list[tuple[int, int]] = []  # (first text, length)
    for i, length in enumerate([*shared, 0]):
        first = i
        while steps and steps[-1][1] >= length:
            first, height = steps.pop()
            if height >= SHORTEST and (best is None or height * (i - first) > best[2] * (best[1] - best[0])):
                best = (first, i, height)
        steps.append((first, length))
    return best


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many items the two begin with alike."""
    limit = min(len(one), len(other))
    # Slices are compared in C: as many comparisons as the length has bits.
    return bisect_left(range(1, limit + 1), True, key=lambda n: one[:n] != other[:n])
