"""One ``generate`` of an analyzer, from its prompts to the last event."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lensd_api import Cancelled, Generated, LensdError, NewToken, Site
from lensd_server.engine.batching.batch import PreparedRow
from lensd_server.engine.batching.batcher import Batcher
from lensd_server.engine.batching.call import ForwardCall
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.faults import internal_failure
from lensd_server.engine.sampling import choose_tokens
from lensd_server.engine.writing import TellingCall, Writing, WritingCall

#: What comes of a generation, in order: ``None`` when all rows have ended, an error when they cannot.
Event = NewToken | Generated[Any] | LensdError | None


@dataclass(frozen=True, slots=True)
class Observed:
    """A capture before and after: what a :class:`ForwardCall` needs of it, ``positions`` by the length of
    a row (``None`` for one that is too long to be read)."""

    sites: frozenset[Site]
    layers: tuple[int, ...]
    reduce: Any
    args: Any
    positions: Callable[[int], tuple[int, ...] | None]


class Generation:
    """A context manager around its rows in the queue. ``tell`` is called on the device's thread."""

    def __init__(
        self,
        batcher: Batcher,
        ticket: Ticket,
        prompts: Sequence[PreparedRow],
        writings: Sequence[Writing],
        observed: Observed | None,
        tell: Callable[[Event], None],
    ) -> None:
        self._batcher, self._ticket, self._tell = batcher, ticket, tell
        self._writings = writings
        self._before: dict[int, Any] = {}
        self._after: dict[int, Any] = {}
        self._awaited = [{"end", "before", "after"} if observed else {"end"} for _ in prompts]
        self._left, self._over = len(prompts), False
        before = None if observed is None else self._watch(observed, prompts, "before", self._before)
        self._then = None if observed is None else self._watch(observed, prompts, "after", self._after)
        self._positions = (lambda length: None) if observed is None else observed.positions
        self._writing = WritingCall(
            ticket=ticket,
            rows=prompts,
            sites=frozenset({Site.FINAL_RESIDUAL}),
            layers=(),
            reduce=choose_tokens,
            args=None,
            settled=self._settled,
            writings=writings,
            told=tell,
            ended=self._ended,
            after=self._then,
            after_positions=self._positions,
        )
        self._submitted = [call for call in (before, self._writing) if call is not None]

    def __enter__(self) -> None:
        self._batcher.submit(*self._submitted)
        self._ticket.usage.rows += len(self._writings)
        self._ticket.on_cancel(self._withdraw)

    def __exit__(self, *_: object) -> None:
        self._ticket.forget(self._withdraw)
        self._withdraw()
        running = self._writing.forward_s + (0.0 if self._then is None else self._then.forward_s)
        self._ticket.usage.queue_s += max(0.0, self._batcher.elapsed(self._writing) - running)

    def _watch(
        self, observed: Observed, prompts: Sequence[PreparedRow], what: str, found: dict[int, Any]
    ) -> TellingCall:
        def told(index: int, value: Any) -> None:
            found[index] = value
            self._came(index, what)

        rows = [
            PreparedRow(p.tokens, observed.positions(len(p.tokens)) or (), p.attention_mask, p.position_ids)
            for p in prompts
        ]
        return TellingCall(
            ticket=self._ticket,
            rows=rows,
            sites=observed.sites,
            layers=observed.layers,
            reduce=observed.reduce,
            args=observed.args,
            settled=self._settled,
            told=told,
        )

    def _ended(self, index: int) -> None:
        if self._then is not None and self._positions(len(self._writing.rows[index].tokens) + 1) is None:
            self._awaited[index].discard("after")
        self._came(index, "end")

    def _came(self, index: int, what: str) -> None:
        awaited = self._awaited[index]
        awaited.discard(what)
        if awaited:
            return
        writing = self._writings[index]
        assert writing.stop is not None
        try:
            text = writing.text
        except BaseException as error:  # a tokenizer's own code, with tokens that it may not know
            self._fail(
                internal_failure(error, "turning tokens into text", request_id=self._ticket.request_id)
            )
            return
        self._tell(
            Generated(
                row=index,
                tokens=tuple(writing.tokens),
                text=text,
                stop=writing.stop,
                logprobs=tuple(writing.logprobs),
                before=self._before.get(index),
                after=self._after.get(index),
            )
        )
        self._left -= 1
        if not self._left:
            self._tell(None)

    def _settled(self, call: ForwardCall) -> None:
        if call.error is not None:
            self._fail(call.error)

    def _fail(self, error: LensdError) -> None:
        """The first error is the last event."""
        if not self._over:
            self._over = True
            self._tell(error)

    def _withdraw(self) -> None:
        error = self._ticket.error() or Cancelled("the generation was given up")
        for call in (*self._submitted, *([] if self._then is None else [self._then])):
            if not call.done:
                self._batcher.withdraw(call, error)
