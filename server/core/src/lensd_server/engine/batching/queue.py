"""The rows that wait for one model, and which of them are next.

Interactive rows go before those of low priority, which still get one batch in :data:`TURNS`, so that
nothing starves. While interactive rows are about, a batch led by others is kept short, since whoever comes
meanwhile waits for its end; when none are, batches are as large as pays.

Not safe by itself: the batcher holds its lock around every call.
"""

import math
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, replace

from lensd_server.engine.batching.call import ForwardCall, QueuedRow
from lensd_server.engine.batching.choose import choose_rows
from lensd_server.engine.batching.fairness import Claim, levels, rounds, take_turns
from lensd_server.engine.batching.price import Price
from lensd_server.engine.batching.sharing import admit_sharers, share
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.events import Priority

#: Rows that are looked at when a batch is built: sorting more takes longer than a better batch saves.
WINDOW = 512
#: Of so many batches one is led by a row of low priority, if one waits.
TURNS = 8
#: How long after the last interactive row others keep their batches short.
ABOUT_S = 5.0
#: What a short batch may take, in forwards of one interactive row: whoever has just missed one waits for
#: it and then for a batch of its own, together two and a half forwards.
SHORT_BATCH = 1.25


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """``max_tokens``: padded tokens a batch may hold. ``price``: what forwards take.
    ``max_rows``: rows that may wait, ``caller_share``: how many of them may be one caller's."""

    max_tokens: int
    price: Price
    max_rows: int = 4096
    caller_share: float = 1.0

    @property
    def max_own_rows(self) -> int:
        """Rows of one caller that may wait."""
        return max(1, int(self.max_rows * self.caller_share))


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows taken to be run together. A single row may be longer than ``max_tokens``, what a batch should
    hold at this moment: run then only so much of it, where it can be run in parts. ``late``: calls
    whose time is up, for the caller to fail."""

    rows: list[QueuedRow]
    max_tokens: int
    late: list[ForwardCall]


class RowQueue:
    """Rows in order of arrival."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._rows: list[QueuedRow] = []
        self._batches = 0
        #: Per analysis and per caller that waits: the last batch that served it, or its arrival.
        self._seen: dict[Hashable, int] = {}
        #: Batches since one was led by a row of low priority.
        self._since_low = 0
        #: When an interactive row was last about, and how long such rows are.
        self._interactive_at: float | None = None
        self._interactive_length = 0.0
        self._callers: Counter[Hashable] = Counter()
        self.tokens = 0

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, call: ForwardCall) -> None:
        """Queues all rows of ``call``."""
        rows = [QueuedRow(call, i, call.submitted) for i in range(len(call.rows))]
        self._rows += rows
        self.tokens += sum(row.length for row in rows)
        self._callers[call.ticket.caller] += len(rows)
        for key in (call.ticket, call.ticket.caller):
            self._seen.setdefault(key, self._batches)
        if rows and _is_interactive(rows[0]):
            self._note_interactive(min(row.length for row in rows), call.submitted)

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

    def of_caller(self, ticket: Ticket) -> int:
        """Rows of whoever is behind ``ticket``."""
        return self._callers[ticket.caller]

    def tokens_ahead(self, ticket: Ticket) -> int:
        """Tokens that have their turn before a first row of ``ticket`` would; equal sequences once."""
        rivals = _in_view([row for row in self._rows if row.call.ticket.priority is ticket.priority])
        claims = [self._claim(row, low_leads=False) for row in rivals]
        seen = self._seen.get(ticket.caller, self._batches)
        mine = Claim(True, ticket.caller, ticket, seen, self._batches, math.inf)
        order = take_turns([*(replace(claim, urgent=True) for claim in claims), mine])
        before = [rivals[i].row for i in order[: order.index(len(rivals))]]
        return sum(len(before[lane[0]].tokens) for lane in share(before))

    def take(self, now: float) -> Batch:
        """Takes out the next batch, and what nobody waits for any more."""
        wanted = [row for row in self._rows if row.wanted]
        late = [row.call for row in wanted if row.call.ticket.expired(now)]
        live = [row for row in wanted if not row.call.ticket.expired(now)]
        rows, max_tokens = self._choose(live, now)
        self._batches += 1
        for row in rows:
            self._seen[row.call.ticket] = self._seen[row.call.ticket.caller] = self._batches
        taken = set(map(id, rows))
        self._keep([row for row in live if id(row) not in taken])
        return Batch(rows, max_tokens, late)

    def _choose(self, live: list[QueuedRow], now: float) -> tuple[list[QueuedRow], int]:
        if not live:
            return [], self._limits.max_tokens
        low_leads = self._low_leads(live)
        short, full = self._short(live, now), self._limits.max_tokens
        lead, other = (short, full) if low_leads else (full, short)
        near = _in_view(live)
        claims = [self._claim(row, low_leads) for row in near]
        order = take_turns(claims)
        claims, rows = [claims[i] for i in order], [near[i] for i in order]
        prepared = [row.row for row in rows]
        lanes = share(prepared)
        # A lane's first row has the best claim of them all.
        level_of = levels(claims)
        picked = choose_rows(
            [rows[lane[0]].length for lane in lanes],
            [level_of[lane[0]] for lane in lanes],
            (lead, lead, other, other),
            self._limits.price,
        )
        return [rows[i] for i in admit_sharers(prepared, [lanes[n] for n in picked], full)], lead

    def _low_leads(self, live: list[QueuedRow]) -> bool:
        """Whether a row of low priority is next."""
        interactive = sum(map(_is_interactive, live))
        low = len(live) - interactive
        leads = low > 0 and (not interactive or self._since_low >= TURNS - 1)
        self._since_low = 0 if leads or not low else self._since_low + 1
        return leads

    def _short(self, live: list[QueuedRow], now: float) -> int:
        """Padded tokens that rows of low priority may make a batch hold now."""
        waiting = [row.length for row in live if _is_interactive(row)]
        if waiting:
            self._note_interactive(min(waiting), now)
        if self._interactive_at is None or now - self._interactive_at > ABOUT_S:
            return self._limits.max_tokens
        price = self._limits.price
        within = price.tokens_within(SHORT_BATCH * price.seconds(self._interactive_length))
        return min(self._limits.max_tokens, max(1, within))

    def _note_interactive(self, length: int, now: float) -> None:
        self._interactive_at, self._interactive_length = now, length

    def _claim(self, row: QueuedRow, low_leads: bool) -> Claim:
        ticket = row.call.ticket
        leads = _is_interactive(row) != low_leads
        seen = self._seen
        return Claim(leads, ticket.caller, ticket, seen[ticket.caller], seen[ticket], row.since)

    def _keep(self, rows: list[QueuedRow]) -> None:
        self._rows = rows
        self.tokens = sum(row.length for row in rows)
        self._callers = Counter(row.call.ticket.caller for row in rows)
        waiting = {*self._callers, *(row.call.ticket for row in rows)}
        self._seen = {key: batch for key, batch in self._seen.items() if key in waiting}


def _in_view(rows: list[QueuedRow]) -> list[QueuedRow]:
    """Of very many rows the first ones of every analysis, as many of each as there is room for."""
    if len(rows) <= WINDOW:
        return rows
    turn = rounds([row.call.ticket for row in rows])
    first = sorted(range(len(rows)), key=turn.__getitem__)[:WINDOW]
    return [rows[i] for i in sorted(first)]


def _is_interactive(row: QueuedRow) -> bool:
    return row.call.ticket.priority is Priority.INTERACTIVE
