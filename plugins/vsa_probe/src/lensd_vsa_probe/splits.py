"""Which rows are held out, and what a probe can therefore know about them."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from lensd_vsa_probe.corpus import Example, concept
from lensd_vsa_probe.listing import integers

Split = Literal["rows", "combination", "example_pair"]

#: Of so many rows not held out for testing one is looked at after each epoch.
VALIDATING = 50

#: What a reader must know of each split to judge its scores.
KNOWN = {
    "rows": "leaky: every pair of a test row was trained on with other partners",
    "combination": "the test row's two pairs were never trained on together, each of them was by itself",
    "example_pair": "the test row's first pair never came first in training, at most second",
}


@dataclass(frozen=True, slots=True)
class Parts:
    """Row numbers: trained on, looked at after each epoch, and tested on only."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]


def split(examples: Sequence[Example], how: Split, share: float, seed: int) -> Parts:
    """Holds out about ``share`` of the rows, whole groups at a time; a fiftieth of the rest validates."""
    groups = [_group(example, number, how) for number, example in enumerate(examples)]
    distinct = list(dict.fromkeys(groups))
    order = _shuffled(len(distinct), seed)
    wanted = max(1, round(share * len(examples)))
    sizes: dict[Hashable, int] = {}
    for group in groups:
        sizes[group] = sizes.get(group, 0) + 1
    held: set[Hashable] = set()
    count = 0
    for number in order[:-1]:  # at least one group is left to train on
        if count >= wanted:
            break
        held.add(distinct[number])
        count += sizes[distinct[number]]
    test = [i for i, group in enumerate(groups) if group in held]
    rest = [i for i, group in enumerate(groups) if group not in held]
    rest = [rest[i] for i in _shuffled(len(rest), seed + 1)]
    validating = max(1, len(rest) // VALIDATING)
    return Parts(tuple(sorted(rest[validating:])), tuple(sorted(rest[:validating])), tuple(test))


def _group(example: Example, number: int, how: Split) -> Hashable:
    folded = [tuple(map(concept, pair)) for pair in example.pairs]
    match how:
        case "combination" if folded:
            return frozenset(folded)
        case "example_pair" if folded:
            return folded[0]
        case _:
            return number


def _shuffled(count: int, seed: int) -> list[int]:
    return integers(torch.randperm(count, generator=torch.Generator().manual_seed(seed)))
