"""How much of the chosen rows is read in the next step, and what keys and values there is room for.

Reading a long row in parts lets others have their turn in between; what has been read is kept between
batches, within bounds. A row that has to give its own back is read anew: slower, never wrong.
"""

from collections.abc import Iterable, Sequence

from lensd_server.engine.batching.call import QueuedRow

#: Tokens that rows which grow may add before their keys and values are copied to a larger place.
SPARE = 32
#: A row is only read in parts if it is longer than this many quanta: parts cost forwards.
WORTH_PARTING = 1.5


def limit_steps(rows: Sequence[QueuedRow], lanes: Sequence[Sequence[int]], quantum: int) -> None:
    """Lets no lane read much more than ``quantum`` tokens at once, where its rows can be read in steps."""
    for lane in lanes:
        length = rows[lane[0]].length
        if length <= WORTH_PARTING * quantum or any(rows[i].call.in_one_go for i in lane):
            continue
        parts = -(-length // quantum)
        for i in lane:
            rows[i].take = -(-length // parts)


def read_alone_at_once(rows: Sequence[QueuedRow], lanes: Sequence[Sequence[int]]) -> None:
    """A beginning that nobody else waits for any more is not worth a step of its own."""
    for lane in lanes:
        if len(lane) == 1:
            rows[lane[0]].take = 0


def slots(rows: Sequence[QueuedRow], lanes: Sequence[Sequence[int]]) -> int:
    """Tokens, padding and spare ones included, whose keys and values a forward of ``lanes`` lays out."""
    members = [rows[i] for lane in lanes for i in lane]
    if not any(row.past is not None or row.length < row.left or row.call.grows for row in members):
        return 0
    spare = SPARE if any(row.call.grows for row in members) else 0
    return len(lanes) * (max(row.done for row in members) + max(row.length for row in members) + spare)


def fitting(
    rows: Sequence[QueuedRow], lanes: Sequence[Sequence[int]], max_slots: float
) -> list[Sequence[int]]:
    """As many of ``lanes``, in order, as may lay out ``max_slots`` together; the first one always."""
    kept = list(lanes)
    while len(kept) > 1 and slots(rows, kept) > max_slots:
        kept.pop()
    return kept


def kept_bytes(rows: Iterable[QueuedRow]) -> int:
    """What ``rows`` keep on the device between batches; what they share counts once."""
    held: dict[int, int] = {}
    for row in rows:
        # Once: the device thread may take it from a row that runs.
        if (past := row.past) is not None:
            held[id(past.slab)] = past.slab.nbytes
        for piece in row.pieces:
            held[id(piece.values)] = piece.nbytes
    return sum(held.values())


def make_room(waiting: Sequence[QueuedRow], excess: int) -> list[QueuedRow]:
    """Lets the last of ``waiting`` forget what they have read, until ``excess`` bytes are free."""
    forgotten: list[QueuedRow] = []
    left = [row for row in waiting if row.past is not None]
    before = kept_bytes(left)
    while left and before - kept_bytes(left) < excess:
        # Rows that read the same beginning hold it together.
        slab = left[-1].past.slab if left[-1].past is not None else None
        going = [row for row in left if row.past is not None and row.past.slab is slab]
        left = [row for row in left if row.past is not None and row.past.slab is not slab]
        forgotten += going
    for row in forgotten:
        row.forget()
    return forgotten
