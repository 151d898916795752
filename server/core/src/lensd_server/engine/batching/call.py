"""One ``forward`` of an analyzer, from the queue to its results."""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from lensd_api import LensdError, ModelView, Site, Stack
from lensd_server.engine.batching.batch import PreparedRow
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
        self.results = [None] * len(self.rows)
        self._missing = len(self.rows)

    @property
    def key(self) -> tuple[frozenset[Site], tuple[int, ...], Hashable]:
        """Rows with equal keys are captured, and reduced, together."""
        return (self.sites, self.layers, self.reduce)

    def put(self, index: int, value: Any) -> None:
        """Row ``index`` is done; ignored once the call has settled."""
        with self._lock:
            if self.done:
                return
            self.results[index] = value
            self._missing -= 1
            if self._missing:
                return
            self.done = True
        self.settled(self)

    def fail(self, error: LensdError) -> None:
        """Settles the call without results; ignored once it has settled."""
        with self._lock:
            if self.done:
                return
            self.done = True
            self.error = error
            self.results = []
        self.settled(self)


@dataclass(slots=True, eq=False)
class QueuedRow:
    """One row of a call, as it waits. ``since`` is on the batcher's clock."""

    call: ForwardCall
    index: int
    since: float

    @property
    def row(self) -> PreparedRow:
        """What is to be run."""
        return self.call.rows[self.index]

    @property
    def length(self) -> int:
        """Its tokens."""
        return len(self.row.tokens)

    @property
    def wanted(self) -> bool:
        """Whether anybody still waits for it. Not, from the moment of a cancel, though the call is told a
        little later."""
        return not self.call.done and not self.call.ticket.cancelled
