"""One batch on its way through the device: what is captured for which rows, and what becomes of them.

Nothing of a row changes before :meth:`Batch.answer`, so that a batch that failed can be run again.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lensd_api import Site, Stack
from lensd_server.engine.anatomy.gather import GatherGroup
from lensd_server.engine.anatomy.past import LaneCache, Past, settle
from lensd_server.engine.batching.batch import Wanted
from lensd_server.engine.batching.call import Following, QueuedRow
from lensd_server.engine.batching.pieces import Piece, cut, join, stack_rows
from lensd_server.engine.batching.sharing import share
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.faults import internal_failure

Members = list[QueuedRow]

#: In the key of what is captured for rows that are not read to their end, or were not from the beginning.
_PIECE = object()


class Batch:
    """The next step of ``rows``, of which some may share a lane."""

    def __init__(self, rows: Sequence[QueuedRow]) -> None:
        self.rows = rows
        self.steps = [row.step() for row in rows]
        self.lanes = share(self.steps)
        #: Of each lane.
        self.first = [self.steps[lane[0]] for lane in self.lanes]
        self._lane_of = {i: number for number, lane in enumerate(self.lanes) for i in lane}
        self._owners = self._assign()
        self.stacks: list[tuple[Members, Stack]] = []
        self.reduced: list[tuple[Members, list[Any]]] = []
        self.failed: list[tuple[Members, BaseException]] = []
        self._pieces: dict[int, Piece] = {}
        self._pasts: dict[int, Past] = {}

    @property
    def wanted(self) -> list[Wanted]:
        """What is captured."""
        return [wanted for wanted, _ in self._owners]

    @property
    def goes_on(self) -> bool:
        """Whether keys and values have to be kept, or were."""
        return any(
            step.past is not None or not step.is_last or row.call.grows
            for row, step in zip(self.rows, self.steps, strict=True)
        )

    def lay_hold(self, captured: Sequence[tuple[GatherGroup, Sequence[int], dict[Site, Tensor]]]) -> None:
        """Takes what was captured of :attr:`wanted`, by groups, and stacks what is complete."""
        for group, members, values in captured:
            if _is_whole(self._owners[members[0]][0]):
                rows = [self.rows[self._owners[m][1][0]] for m in members]
                self._complete(rows, group.layers, values)
                continue
            parts = cut(values, [len(self._owners[m][0].positions) for m in members])
            for m, part in zip(members, parts, strict=True):
                owners = self._owners[m][1]
                # Copied, so that a small part does not hold the whole; shared by its owners.
                own = {site: tensor.clone() for site, tensor in part.items()}
                for i in owners:
                    self._pieces[i] = Piece(self.steps[i].asked, own)
        self._join()

    def keep(self, cache: LaneCache) -> None:
        """Keeps keys and values of the lanes that go on."""
        kept = cache.kept([len(step) for step in self.first])
        going = [
            number
            for number, lane in enumerate(self.lanes)
            if any(not self.steps[i].is_last or self.rows[i].call.grows for i in lane)
        ]
        self._pasts = dict(zip(going, settle([kept[number] for number in going]), strict=True))

    def account(self, seconds: float) -> None:
        """Counts rows, shared ones too, for their analyses; each of them had the whole forward."""
        for call in {id(row.call): row.call for row in self.rows}.values():
            call.forward_s += seconds
        for ticket in {row.call.ticket for row in self.rows}:
            ticket.usage.forward_s += seconds
            ticket.usage.largest_batch = max(ticket.usage.largest_batch, len(self.lanes))
        for lane in self.lanes:
            for number, i in enumerate(lane):
                usage, step = self.rows[i].call.ticket.usage, self.steps[i]
                usage.tokens += len(step)
                usage.reused_tokens += len(step) if number else 0
                if step.is_last and not self.rows[i].call.grows:
                    usage.rows += 1
                    usage.shared_rows += number > 0

    def answer(self, fetched: Sequence[Sequence[Any]]) -> None:
        """Gives every row its value, or lets it go on."""
        place = {id(row): i for i, row in enumerate(self.rows)}
        for i, (row, step) in enumerate(zip(self.rows, self.steps, strict=True)):
            if not step.is_last:
                row.advance(self._pasts.get(self._lane_of[i]), self._pieces.get(i))
        for (members, _), values in zip(self.reduced, fetched, strict=True):
            for row, value in zip(members, values, strict=True):
                following = _put(row, value)
                if following is None:
                    row.answered = True
                    row.forget()
                else:
                    row.go_on(following, self._pasts.get(self._lane_of[place[id(row)]]))

    def _assign(self) -> list[tuple[Wanted, list[int]]]:
        """What is captured, and of which rows it is a part."""
        found: list[tuple[Wanted, list[int]]] = []
        shared: dict[Wanted, list[int]] = {}
        for i, (row, step) in enumerate(zip(self.rows, self.steps, strict=True)):
            asked, call = step.asked, row.call
            positions, lane = step.relative(asked), self._lane_of[i]
            if step.is_last and not row.pieces and len(asked) == len(row.row.positions):
                found.append((Wanted(lane, call.key, positions), [i]))
            elif asked:
                # What is made of a piece is seen later, so only sites and layers matter.
                wanted = Wanted(lane, (call.sites, call.layers, _PIECE), positions)
                if wanted not in shared:
                    shared[wanted] = []
                    found.append((wanted, shared[wanted]))
                shared[wanted].append(i)
        return found

    def _join(self) -> None:
        """Stacks the rows whose last piece has come."""
        ready: dict[Any, list[int]] = {}
        for i, (row, step) in enumerate(zip(self.rows, self.steps, strict=True)):
            if step.is_last and (row.pieces or i in self._pieces):
                ready.setdefault(row.call.key, []).append(i)
        for members in ready.values():
            rows = [self.rows[i] for i in members]
            values = stack_rows([join(self._all_pieces(i)) for i in members])
            self._complete(rows, rows[0].call.layers, values)

    def _all_pieces(self, i: int) -> list[Piece]:
        last = self._pieces.get(i)
        return self.rows[i].pieces + ([] if last is None else [last])

    def _complete(self, members: Members, layers: tuple[int, ...], values: dict[Site, Tensor]) -> None:
        _note_captures(members, values)
        stack = Stack(
            values=values,
            args=[row.call.argument(row.index) for row in members],
            positions=[row.row.positions for row in members],
            tokens=[row.row.tokens for row in members],
            layers=layers,
        )
        self.stacks.append((members, stack))


def _put(row: QueuedRow, value: Any) -> Following | None:
    """Gives ``row`` its value; what its call makes of that, such as text, may fail for this call alone."""
    try:
        return row.call.put(row.index, value)
    except BaseException as error:
        row.call.fail(internal_failure(error, "answering a row", request_id=row.call.ticket.request_id))
        return None


def _is_whole(wanted: Wanted) -> bool:
    """Whether what is captured is all that its row asked for."""
    return wanted.key[2] is not _PIECE


def _note_captures(members: Members, values: dict[Site, Tensor]) -> None:
    each = sum(tensor.nbytes for tensor in values.values()) // len(members)
    own: dict[Ticket, int] = {}
    for row in members:
        own[row.call.ticket] = own.get(row.call.ticket, 0) + each
    for ticket, held in own.items():
        ticket.usage.peak_capture_bytes = max(ticket.usage.peak_capture_bytes, held)
