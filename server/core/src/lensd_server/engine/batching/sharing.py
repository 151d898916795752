"""Steps that read the same tokens after the same past run once. Pure.

What a forward computes depends on tokens, mask and positions alone, so rows of different analyses, and
of different callers, may share it. What is captured, and what is made of that, stays each row's own.
"""

from collections.abc import Hashable, Sequence

from lensd_server.engine.batching.batch import Step


def sequence_of(step: Step) -> Hashable:
    """Equal for steps that one lane of a forward can answer."""
    row, own = step.row, slice(step.start, step.stop)
    mask = None if row.attention_mask is None else row.attention_mask[own]
    positions = None if row.position_ids is None else row.position_ids[own]
    # Said or not, it is the same.
    if mask is not None and all(mask):
        mask = None
    if positions == tuple(range(step.start, step.stop)):
        positions = None
    return (id(step.past), row.tokens[own], mask, positions)


def share(steps: Sequence[Step]) -> list[list[int]]:
    """Indices of ``steps`` in lanes: one sequence each, in order of their first step."""
    lanes: dict[Hashable, list[int]] = {}
    for i, step in enumerate(steps):
        lanes.setdefault(sequence_of(step), []).append(i)
    return list(lanes.values())


def admit_sharers(steps: Sequence[Step], lanes: Sequence[Sequence[int]], budget: int) -> list[int]:
    """The steps of ``lanes`` that can be answered together, sorted: of each lane at least the first.

    Captures take memory for every row of a lane, so all rows together capture at most ``budget``
    positions; the others wait for another batch. Rows that go on after the step, and ask for the same
    positions of it, have one capture between them.
    """
    admitted = [lane[0] for lane in lanes]
    room = budget - sum(len(steps[i].asked) for i in admitted)
    of_lane = {i: number for number, lane in enumerate(lanes) for i in lane}
    kept = {(of_lane[i], steps[i].asked) for i in admitted if not steps[i].is_last}
    for i in sorted(set(of_lane) - set(admitted)):
        once = (of_lane[i], steps[i].asked)
        cost = 0 if once in kept else len(steps[i].asked)
        if cost <= room:
            room -= cost
            admitted.append(i)
            if not steps[i].is_last:
                kept.add(once)
    return sorted(admitted)
