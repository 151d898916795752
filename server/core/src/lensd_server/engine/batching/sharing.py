"""Rows that are the same sequence run once. Pure.

What a forward computes depends on tokens, mask and positions alone, so rows of different analyses, and
of different callers, may share it. What is captured, and what is made of that, stays each row's own.
"""

from collections.abc import Hashable, Sequence

from lensd_server.engine.batching.batch import PreparedRow


def sequence_of(row: PreparedRow) -> Hashable:
    """Equal for rows that one forward can answer."""
    return (row.tokens, row.attention_mask, row.position_ids)


def share(rows: Sequence[PreparedRow]) -> list[list[int]]:
    """Indices of ``rows`` in lanes: one sequence each, in order of their first row."""
    lanes: dict[Hashable, list[int]] = {}
    for i, row in enumerate(rows):
        lanes.setdefault(sequence_of(row), []).append(i)
    return list(lanes.values())


def admit_sharers(rows: Sequence[PreparedRow], lanes: Sequence[Sequence[int]], budget: int) -> list[int]:
    """The rows of ``lanes`` that can be answered together, sorted: of each lane at least the first.

    Captures take memory for every row of a lane, so all rows together capture at most ``budget``
    positions; the others wait for another batch.
    """
    admitted = [lane[0] for lane in lanes]
    room = budget - sum(len(rows[i].positions) for i in admitted)
    for i in sorted(i for lane in lanes for i in lane[1:]):
        if len(rows[i].positions) <= room:
            room -= len(rows[i].positions)
            admitted.append(i)
    return sorted(admitted)
