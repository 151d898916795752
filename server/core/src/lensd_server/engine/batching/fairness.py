"""In which order waiting rows may go: analyses take turns, and so do the callers behind them. Pure.

A request with a thousand rows and a later one with a single row are not served in order of arrival:
the single row goes with the first row of the thousand.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Claim:
    """A waiting row, as far as its turn is concerned.

    ``owner`` is its analysis, ``peer`` whoever sent that, or the owner where nobody is known. Their
    ``seen`` is the number of the last batch that took a row of them, or of the one before they came.
    """

    urgent: bool
    peer: Hashable
    owner: Hashable
    peer_seen: int
    owner_seen: int
    since: float


def take_turns(claims: Sequence[Claim]) -> list[int]:
    """Indices of all claims in the order of their turns, urgent ones first.

    In round ``n`` every peer has its ``n``-th row, the analyses of one peer taking turns likewise.
    Within a round those go first that were served longest ago, then the oldest.
    """
    by_age = sorted(range(len(claims)), key=lambda i: (claims[i].owner_seen, claims[i].since, i))
    turns = rounds([(claims[i].urgent, claims[i].owner) for i in by_age])
    by_owner = [i for _, i in sorted(zip(turns, by_age, strict=True), key=lambda pair: pair[0])]
    turns = rounds([(claims[i].urgent, claims[i].peer) for i in by_owner])
    turn = dict(zip(by_owner, turns, strict=True))
    return sorted(by_owner, key=lambda i: (not claims[i].urgent, turn[i], claims[i].peer_seen))


def levels(claims: Sequence[Claim]) -> list[int]:
    """Who may fill a batch first, for claims in the order of their turns.

    0: the first urgent row of each analysis, 1: its other urgent ones, 2 and 3: likewise those that
    can wait.
    """
    turns = rounds([(claim.urgent, claim.owner) for claim in claims])
    return [(0 if claim.urgent else 2) + (number > 0) for claim, number in zip(claims, turns, strict=True)]


def rounds(keys: Sequence[Hashable]) -> list[int]:
    """How many equal keys come before each."""
    seen: dict[Hashable, int] = {}
    found: list[int] = []
    for key in keys:
        found.append(seen.get(key, 0))
        seen[key] = found[-1] + 1
    return found
