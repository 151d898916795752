"""The rows that wait for one model, and which of them are next.

Not safe by itself: the batcher holds its lock around every call.
"""

from collections.abc import Hashable
from dataclasses import dataclass

from lensd_server.engine.batching.call import ForwardCall, QueuedRow
from lensd_server.engine.batching.choose import choose_rows
from lensd_server.engine.batching.fairness import Claim, levels, take_turns
from lensd_server.engine.batching.sharing import admit_sharers, share
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.events import Priority

#: A row of low priority that has waited this long counts as urgent, so that it is served at all.
PATIENCE_S = 5.0


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """``max_tokens``: padded tokens a batch may hold (a longer row runs alone). ``worth``: padding
    one saved forward pays for, in tokens. ``max_rows``: rows that may wait."""

    max_tokens: int
    worth: float
    max_rows: int = 4096


class RowQueue:
    """Rows in order of arrival."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._rows: list[QueuedRow] = []
        self._batches = 0
        #: Per analysis and per peer that waits: the last batch that served it, or its arrival.
        self._seen: dict[Hashable, int] = {}
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, call: ForwardCall) -> None:
        """Queues all rows of ``call``."""
        self._rows += [QueuedRow(call, i, call.submitted) for i in range(len(call.rows))]
        self.tokens += sum(len(row.tokens) for row in call.rows)
        for key in (call.ticket, call.ticket.caller):
            self._seen.setdefault(key, self._batches)

    def drop(self, call: ForwardCall) -> int:
        """Takes out what waits of ``call``; answers how many rows that were."""
        before = len(self._rows)
        self._keep([row for row in self._rows if row.call is not call])
        return before - len(self._rows)

    def clear(self) -> list[QueuedRow]:
        """Takes out everything."""
        left = self._rows
        self._keep([])
        return left

    def pending(self, ticket: Ticket) -> int:
        """Rows of one analysis."""
        return sum(row.call.ticket is ticket for row in self._rows)

    def take(self, now: float) -> tuple[list[QueuedRow], list[ForwardCall]]:
        """Takes out the next batch, and calls that nobody waits for any more: the latter, where
        time is up, are answered for the caller to fail."""
        waiting = [row for row in self._rows if not row.call.done]
        late = [row.call for row in waiting if row.call.ticket.expired(now)]
        live = [row for row in waiting if not row.call.ticket.expired(now)]
        chosen = self._choose(live, now)
        self._batches += 1
        for row in chosen:
            self._seen[row.call.ticket] = self._seen[row.call.ticket.caller] = self._batches
        taken = set(map(id, chosen))
        self._keep([row for row in live if id(row) not in taken])
        return chosen, late

    def _choose(self, live: list[QueuedRow], now: float) -> list[QueuedRow]:
        if not live:
            return []
        claims = [self._claim(row, now) for row in live]
        order = take_turns(claims)
        claims, rows = [claims[i] for i in order], [live[i] for i in order]
        prepared = [row.row for row in rows]
        lanes = share(prepared)
        # A lane's first row has the best claim of them all.
        level_of = levels(claims)
        budget = self._limits.max_tokens
        lengths = [rows[lane[0]].length for lane in lanes]
        picked = choose_rows(lengths, [level_of[lane[0]] for lane in lanes], budget, self._limits.worth)
        return [rows[i] for i in admit_sharers(prepared, [lanes[n] for n in picked], budget)]

    def _claim(self, row: QueuedRow, now: float) -> Claim:
        ticket = row.call.ticket
        urgent = ticket.priority is Priority.INTERACTIVE or now - row.since > PATIENCE_S
        seen = self._seen
        return Claim(urgent, ticket.caller, ticket, seen[ticket.caller], seen[ticket], row.since)

    def _keep(self, rows: list[QueuedRow]) -> None:
        self._rows = rows
        self.tokens = sum(row.length for row in rows)
        waiting = {key for row in rows for key in (row.call.ticket, row.call.ticket.caller)}
        self._seen = {key: batch for key, batch in self._seen.items() if key in waiting}
