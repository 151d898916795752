"""One ``forward`` of an analyzer, from the queue to its results."""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from lensd_api import LensdError, ModelView, Site, Stack
from lensd_server.engine.anatomy.past import Past
from lensd_server.engine.batching.batch import PreparedRow, Step
from lensd_server.engine.batching.pieces import Piece
from lensd_server.engine.batching.ticket import Ticket


@dataclass(slots=True, eq=False)
class ForwardCall:
    """Rows that one ``forward`` asked for.

    It settles exactly once, on whatever thread that happens: with all ``results``, or with an
    ``error``. ``settled`` is called then and must return at once.
    """

    ticket: Ticket
    rows: Sequence[PreparedRow]
    sites: frozenset[Site]
    layers: tuple[int, ...]
    #: What to make of the captures; ``None`` for the captures themselves.
    reduce: Callable[[Stack, ModelView], Sequence[Any]] | None
    args: Any
    settled: Callable[["ForwardCall"], None]
    results: list[Any] = field(init=False)
    error: LensdError | None = None
    done: bool = False
    #: Forwards that held rows of it, in seconds.
    forward_s: float = 0.0
    submitted: float = 0.0
    _missing: int = field(init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.rows = list(self.rows)
        self.results = [None] * len(self.rows)
        self._missing = len(self.rows)

    @property
    def in_one_go(self) -> bool:
        """Whether its rows cannot be read in steps: attention looks back at the whole of a row."""
        return bool(self.sites & {Site.ATTENTION, Site.VALUES})

    @property
    def key(self) -> tuple[frozenset[Site], tuple[int, ...], Hashable]:
        """Rows with equal keys are captured, and reduced, together."""
        return (self.sites, self.layers, self.reduce)

    @property
    def grows(self) -> bool:
        """Whether a row may have more to read once it has been answered."""
        return False

    def argument(self, index: int) -> Any:
        """What ``reduce`` is told about row ``index``."""
        return self.args

    def set_row(self, index: int, row: PreparedRow) -> None:
        """Another row in the place of row ``index``, which does not wait just now."""
        cast("list[PreparedRow]", self.rows)[index] = row

    def put(self, index: int, value: Any) -> "Following | None":
        """Row ``index`` has been read; ignored once the call has settled.

        Answers as what it goes on, with all that has been read of it: a row of a call that waits for it.
        """
        with self._lock:
            if self.done:
                return None
            self.results[index] = value
            self._missing -= 1
            if self._missing:
                return None
            self.done = True
        self.settled(self)
        return None

    def fail(self, error: LensdError) -> None:
        """Settles the call without results; ignored once it has settled."""
        with self._lock:
            if self.done:
                return
            self.done = True
            self.error = error
            self.results = []
        self.settled(self)


#: A call and the index of one of its rows.
Following = tuple[ForwardCall, int]


@dataclass(slots=True, eq=False)
class QueuedRow:
    """One row of a call, as it waits. ``since`` is on the batcher's clock.

    A row may be read in several steps, each on top of the ``past`` that the one before left. ``take`` is
    how many tokens the next step reads, 0 for all that are left.
    """

    call: ForwardCall
    index: int
    since: float
    take: int = 0
    past: Past | None = None
    #: Captured in earlier steps.
    pieces: list[Piece] = field(default_factory=list[Piece])
    answered: bool = False

    @property
    def row(self) -> PreparedRow:
        """What is to be run."""
        return self.call.rows[self.index]

    @property
    def done(self) -> int:
        """Tokens that have been read."""
        return 0 if self.past is None else len(self.past)

    @property
    def left(self) -> int:
        """Tokens that have not."""
        return len(self.row.tokens) - self.done

    @property
    def length(self) -> int:
        """Tokens of the next step."""
        return self.take or self.left

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for it. Not, from the moment of a cancel, though the call is told a
        little later."""
        return not self.call.done and not self.call.ticket.cancelled

    def step(self) -> Step:
        """What is to be run next."""
        return Step(self.row, self.done, self.done + self.length, self.past)

    def advance(self, past: Past | None, piece: Piece | None) -> None:
        """A step was run and others follow."""
        self.past, self.take = past, 0
        if piece is not None:
            self.pieces.append(piece)

    def go_on(self, following: Following, past: Past | None) -> None:
        """It was answered and has grown: the rest of it is read on from ``past``, if that is enough."""
        self.forget()
        self.call, self.index = following
        # What is asked of the part that has been read is to be seen by reading it again.
        again = self.call.in_one_go or (past is not None and min(self.row.positions, default=0) < len(past))
        self.past = None if again else past

    def forget(self) -> None:
        """Gives back what has been read and captured: the row begins anew."""
        self.past, self.take = None, 0
        self.pieces.clear()
