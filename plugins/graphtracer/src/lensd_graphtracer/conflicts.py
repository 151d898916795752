"""Conflicts: two steps that say different things of one entity, and whose words both reached a later one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lensd_graphtracer.idg import Dependency, Reading
from lensd_graphtracer.references import words_of

#: "the Key: value", "- **Key**: value", "Key = value", "key is value".
_CLAIM = re.compile(
    r"(?m)(?:^|[.;,\n({\[])[ \t>*#\-•\"'`]*(?:the |a |an )?(?P<key>[A-Za-z][\w '’/()%-]{2,60}?)[*\"'` \t]*(?::|=|\bis\b|\bwas\b|\bare\b)[*\"'` \t]*"
    r"(?P<value>[$€£]?-?\d[\d,]*(?:\.\d+)?%?|[A-Z][\w’'-]*(?: [A-Z][\w’'-]*){0,4})(?=[\s.,;*\"'`)\]}]|$)"
)
#: Keys of forms and ledgers, which say something else each time.
_FORMAL = frozenset(
    "answer reason step name output result note task role query address title value code exitcode".split(" ")  # noqa: SIM905
)
#: Values that are no claim.
_EMPTY = frozenset(("the", "a", "an", "true", "false", "none", "null", "yes", "no", "it", "this", "not"))
#: Conflicts reported, and claims of one key remembered.
MOST, _VALUES = 100, 16


@dataclass(frozen=True, slots=True)
class Claim:
    """One step's value of one key."""

    step: int
    value: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Conflict:
    """``first`` and ``second`` disagree on ``key``; ``meet`` is the first later step that both reach."""

    key: str
    first: Claim
    second: Claim
    meet: int


def find_conflicts(readings: Sequence[Reading], edges: Sequence[Dependency]) -> list[Conflict]:
    """Conflicts in order of the later step, at most ``MOST``."""
    order = [reading.step.index for reading in readings]
    reach = _reach(order, edges)
    place = {step: k for k, step in enumerate(order)}
    seen: dict[str, list[Claim]] = {}
    found: list[Conflict] = []
    for reading in readings:
        for key, claim in claims_of(reading.step.index, reading.step.content).items():
            earlier = seen.setdefault(key, [])
            rivals = [c for c in earlier if c.value != claim.value and c.step != claim.step]
            for rival in rivals[-1:]:
                here = 1 << place[claim.step]
                both = reach[place[rival.step]] & reach[place[claim.step]] & ~here
                if both and len(found) < MOST:
                    meet = order[(both & -both).bit_length() - 1]
                    found.append(Conflict(key, rival, claim, meet))
            if all(c.value != claim.value for c in earlier) and len(earlier) < _VALUES:
                earlier.append(claim)
    return found


def claims_of(step: int, text: str) -> dict[str, Claim]:
    """What ``text`` says of what: the first value of each key."""
    found: dict[str, Claim] = {}
    for match in _CLAIM.finditer(text[:32_000]):
        words = [word for word in words_of(match["key"]) if word not in ("the", "a", "an", "of", "for")]
        value = match["value"].replace(",", "").lstrip("$€£").lower()
        key = " ".join(words)
        if not 1 <= len(words) <= 6 or len(key) < 4 or key in _FORMAL or value in _EMPTY:
            continue
        found.setdefault(key, Claim(step, value, match.start("value"), match.end("value")))
    return found


def _reach(order: Sequence[int], edges: Sequence[Dependency]) -> list[int]:
    """Per step a set of bits: the steps that its words reach, itself included."""
    place: Mapping[int, int] = {step: k for k, step in enumerate(order)}
    children: list[list[int]] = [[] for _ in order]
    for edge in edges:
        children[place[edge.source]].append(place[edge.target])
    reach = [0] * len(order)
    for k in range(len(order) - 1, -1, -1):
        bits = 1 << k
        for child in children[k]:
            bits |= reach[child]
        reach[k] = bits
    return reach


def descendants_of(order: Sequence[int], edges: Sequence[Dependency]) -> dict[int, list[int]]:
    """Per step the steps its words reach, itself included, in the order of the log."""
    return {
        step: [order[k] for k in range(len(order)) if bits >> k & 1]
        for step, bits in zip(order, _reach(order, edges), strict=True)
    }
