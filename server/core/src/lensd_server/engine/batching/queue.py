"""The rows that wait for one model, and which of them are next.

Interactive rows go before those of low priority, which still get one batch in :data:`TURNS`, so that
nothing starves. While interactive rows are about, a batch led by others is kept short, since whoever comes
meanwhile waits for its end; when none are, batches are as large as pays.

Not safe by itself: the batcher holds its lock around every call.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from lensd_server.engine.anatomy.continuing import Continuation
from lensd_server.engine.batching.batch import Step
from lensd_server.engine.batching.call import ForwardCall, QueuedRow
from lensd_server.engine.batching.choose import choose_rows
from lensd_server.engine.batching.fairness import Claim, levels, rounds, take_turns
from lensd_server.engine.batching.prefixes import SHORTEST, plan_prefixes, unread
from lensd_server.engine.batching.price import Price
from lensd_server.engine.batching.sharing import admit_sharers, share
from lensd_server.engine.batching.stepping import (
    WORTH_PARTING,
    fitting,
    kept_bytes,
    limit_steps,
    make_room,
    read_alone_at_once,
    slots,
)
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.events import Priority

#: Rows that are looked at when a batch is built: sorting more takes longer than a better batch saves.
WINDOW = 512
#: Of so many batches one is led by a row of low priority, if one waits.
TURNS = 8
#: How long after the last interactive row others keep their batches short.
ABOUT_S = 5.0
#: What a short batch may take, in forwards of one interactive row: whoever has just missed one waits for
#: it and then for a batch of its own.
SHORT_BATCH = 1.25
#: How much longer others may make an interactive batch: where the device has room, they cost nothing.
FILLED_BATCH = 1.05
#: Parts of rows are not made shorter than this: each of them costs a forward.
LEAST_PART = 16


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """``max_tokens``: padded tokens a batch may hold. ``price``: what forwards take.
    ``max_rows``: rows that may wait, ``caller_share``: how many of them may be one caller's.
    ``max_cache_bytes``: keys and values that may be kept between batches, or laid out for one.
    ``longest_wait_s``: how long a batch may wait for callers that were just answered."""

    max_tokens: int
    price: Price
    max_rows: int = 4096
    caller_share: float = 1.0
    max_cache_bytes: int = 2**29
    longest_wait_s: float = 0.0

    @property
    def max_own_rows(self) -> int:
        """Rows of one caller that may wait."""
        return max(1, int(self.max_rows * self.caller_share))


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows taken to be run together, each by its next step. ``late``: calls whose time is up, for the
    caller to fail."""

    rows: list[QueuedRow]
    late: list[ForwardCall]


class RowQueue:
    """Rows in order of arrival."""

    def __init__(self, limits: BatchLimits) -> None:
        self._limits = limits
        self._rows: list[QueuedRow] = []
        self._batches = 0
        #: Whether rows may be read in steps, and what a token of theirs then takes.
        self._continuation = Continuation()
        self._wished = False
        #: Tokens that rows were spared since somebody last looked, because others had just read them.
        self.lent_tokens = 0
        self.learned = False
        #: What reading something by itself has to save, in tokens.
        self._worth = limits.price.worth(limits.max_tokens)
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
        tokens = sum(row.left for row in rows)
        self._rows += rows
        self.tokens += tokens
        self._callers[call.ticket.caller] += len(rows)
        for key in (call.ticket, call.ticket.caller):
            self._seen.setdefault(key, self._batches)
        if rows and is_interactive(rows[0]):
            self._note_interactive(min(row.length for row in rows), call.submitted)
        self._plan(rows)

    def readmit(self, rows: Sequence[QueuedRow]) -> None:
        """Queues ``rows`` again, which a batch has read a part of. They keep their age."""
        self._rows = [*rows, *self._rows]
        self.tokens += sum(row.left for row in rows)
        self._callers.update(row.call.ticket.caller for row in rows)
        for row in rows:
            for key in (row.call.ticket, row.call.ticket.caller):
                self._seen.setdefault(key, self._batches)
        self._lend(rows)
        self._plan(rows)

    @property
    def wants_steps(self) -> bool:
        """Whether some row may be worth reading in steps."""
        return self._wished or any(row.take or row.call.grows for row in self._rows)

    def learn(self, continuation: Continuation) -> None:
        """Whether rows can be read in steps at all: until then it is taken for granted."""
        self._continuation, self.learned = continuation, True
        if not continuation:
            for row in self._rows:
                row.forget()

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

    @property
    def urgent(self) -> bool:
        """Whether a row that waits is interactive."""
        return any(map(is_interactive, self._rows))

    def kept_bytes(self, running: Sequence[QueuedRow]) -> int:
        """What is kept of rows that were read in part, whether they wait or are ``running``."""
        return kept_bytes((*self._rows, *running))

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
        before = [rivals[i] for i in order[: order.index(len(rivals))]]
        # Of rows that begin alike their beginning as well; what they go on to alone comes on top.
        lanes = share([row.step() for row in before])
        rest = sum(row.left - row.length for row in before)
        return sum(before[lane[0]].length for lane in lanes) + rest

    def take(self, now: float) -> Batch:
        """Takes out the next batch, and what nobody waits for any more."""
        wanted = [row for row in self._rows if row.wanted]
        late = [row.call for row in wanted if row.call.ticket.expired(now)]
        live = [row for row in wanted if not row.call.ticket.expired(now)]
        rows = self._choose(live, now)
        self._batches += 1
        for row in rows:
            self._seen[row.call.ticket] = self._seen[row.call.ticket.caller] = self._batches
        taken = set(map(id, rows))
        self._keep([row for row in live if id(row) not in taken])
        return Batch(rows, late)

    def _choose(self, live: list[QueuedRow], now: float) -> list[QueuedRow]:
        if not live:
            return []
        low_leads = self._low_leads(live)
        full = self._limits.max_tokens
        short = self._short(live, now, SHORT_BATCH if low_leads else FILLED_BATCH)
        lead, other = (short, full) if low_leads else (full, short)
        near = _in_view(live)
        claims = [self._claim(row, low_leads) for row in near]
        order = take_turns(claims)
        claims, rows = [claims[i] for i in order], [near[i] for i in order]
        lanes = share([row.step() for row in rows])
        read_alone_at_once(rows, lanes)
        self._limit(rows, lanes[0], lead)
        # A lane's first row has the best claim of them all.
        level_of = levels(claims)
        picked = choose_rows(
            [rows[lane[0]].length for lane in lanes],
            [level_of[lane[0]] for lane in lanes],
            (lead, lead, other, other),
            self._limits.price,
        )
        fitted = fitting(rows, [lanes[n] for n in picked], self._max_slots())
        chosen = admit_sharers([row.step() for row in rows], fitted, full)
        return [rows[i] for i in self._within_memory(rows, chosen, slots(rows, fitted))]

    def _limit(self, rows: Sequence[QueuedRow], first: Sequence[int], lead: int) -> None:
        """Reads the first row in parts where it would hold up others for long."""
        part = self._part(rows, lead)
        if not self.learned:
            # Not worth waiting for now; it is found out before the next batch.
            self._wished |= rows[first[0]].left > WORTH_PARTING * part
        elif self._continuation:
            limit_steps(rows, [first], part)

    def _part(self, rows: Sequence[QueuedRow], lead: int) -> int:
        """Tokens of the first row that may be read at a time: fewer where somebody else is in a hurry."""
        first = rows[0].call.ticket
        hurry = any(row.call.ticket is not first and is_interactive(row) for row in rows)
        return max(LEAST_PART, min(lead, self._limits.max_tokens // 4) if hurry else lead)

    def _max_slots(self) -> float:
        each = self._continuation.bytes_per_token
        return self._limits.max_cache_bytes / each if each else float("inf")

    def _within_memory(
        self, rows: Sequence[QueuedRow], chosen: Sequence[int], needed_slots: int
    ) -> Sequence[int]:
        """``chosen``, if what has been read of waiting rows leaves room for what will have been read of them.

        If not, only the first row goes, and to its end, so that it keeps nothing. One that grows has to
        keep what it has read: others that grow then read theirs again. Each turn still brings a row
        nearer to its end, so no two of them can go on taking each other's room for nothing.
        """
        excess = needed_slots * self._continuation.bytes_per_token - self._limits.max_cache_bytes
        excess += kept_bytes(self._rows)
        if not self._continuation.bytes_per_token or excess <= 0:
            return chosen
        first = rows[chosen[0]]
        if not first.call.grows:
            first.take = 0
            return chosen[:1]
        going = {id(rows[i]) for i in chosen}
        make_room([row for row in self._rows if row.call.grows and id(row) not in going], excess)
        return chosen

    def _lend(self, rows: Sequence[QueuedRow]) -> None:
        """What has just been read of ``rows`` is the beginning of some that came meanwhile: they go on from it."""
        lenders = {id(row.past): row for row in rows if not row.call.grows and row.done >= SHORTEST}
        for lender in lenders.values():
            done = lender.done
            read = unread(Step(lender.row, 0, done)).items
            for row in self._rows:
                if (
                    row.past is None
                    and row.left > done
                    and row.row.tokens[:done] == lender.row.tokens[:done]
                    and min(row.row.positions, default=done) >= done
                    and not row.call.in_one_go
                    and unread(Step(row.row, 0, done)).items == read
                ):
                    row.past, row.take = lender.past, 0
                    row.call.ticket.usage.tokens += done
                    row.call.ticket.usage.reused_tokens += done
                    self.lent_tokens += done

    def _plan(self, arrived: Sequence[QueuedRow]) -> None:
        """Looks for beginnings that rows which have just come share with others."""
        if not self._continuation:
            return
        heads = {_head(row) for row in arrived} - {None}
        if not heads:
            return
        rows = [row for row in self._rows if _head(row) in heads]
        planned = plan_prefixes(
            [unread(Step(row.row, row.done, len(row.row.tokens), row.past)) for row in rows], self._worth
        )
        for row, length in zip(rows, planned, strict=True):
            row.take = length

    def _low_leads(self, live: list[QueuedRow]) -> bool:
        """Whether a row of low priority is next."""
        interactive = sum(map(is_interactive, live))
        low = len(live) - interactive
        leads = low > 0 and (not interactive or self._since_low >= TURNS - 1)
        self._since_low = 0 if leads or not low else self._since_low + 1
        return leads

    def _short(self, live: list[QueuedRow], now: float, forwards: float) -> int:
        """Padded tokens that rows of low priority may make a batch hold now: while interactive rows are
        about, as many as take no longer than ``forwards`` of such a row."""
        waiting = [row.length for row in live if is_interactive(row)]
        if waiting:
            self._note_interactive(min(waiting), now)
        if self._interactive_at is None or now - self._interactive_at > ABOUT_S:
            return self._limits.max_tokens
        price = self._limits.price
        within = price.tokens_within(forwards * price.seconds(self._interactive_length))
        return min(self._limits.max_tokens, max(1, within))

    def _note_interactive(self, length: int, now: float) -> None:
        self._interactive_at, self._interactive_length = now, length

    def _claim(self, row: QueuedRow, low_leads: bool) -> Claim:
        ticket = row.call.ticket
        leads = is_interactive(row) != low_leads
        seen = self._seen
        return Claim(leads, ticket.caller, ticket, seen[ticket.caller], seen[ticket], row.since)

    def _keep(self, rows: list[QueuedRow]) -> None:
        self._rows = rows
        self.tokens = sum(row.left for row in rows)
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


def is_interactive(row: QueuedRow) -> bool:
    """Whether somebody is impatient for it."""
    return row.call.ticket.priority is Priority.INTERACTIVE


def _head(row: QueuedRow) -> Hashable:
    """Equal for rows that may have a beginning in common; ``None`` for one that is read at once."""
    if row.left < SHORTEST or row.call.in_one_go or not row.wanted:
        return None
    return (id(row.past), row.row.tokens[row.done : row.done + SHORTEST])
