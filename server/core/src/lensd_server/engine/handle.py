"""The two faces of a leased model that analyzers see: one to await, one that blocks."""

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import Future
from dataclasses import dataclass
from operator import index as integer
from queue import SimpleQueue
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from lensd_api import (
    Anatomy,
    Cancelled,
    Capture,
    Generated,
    InvalidRequest,
    LensdError,
    NewToken,
    Row,
    Sampling,
    Site,
    TokenStatistics,
)
from lensd_server.engine.anatomy.capture import check_sites
from lensd_server.engine.batching.batch import PreparedRow
from lensd_server.engine.batching.batcher import Batcher
from lensd_server.engine.batching.call import ForwardCall
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.generation import Event, Generation, Observed
from lensd_server.engine.logprobs import logprob_capture, no_statistics, statistics_capture
from lensd_server.engine.models.tokens import Tokens
from lensd_server.engine.wakeup import post
from lensd_server.engine.writing import Writing

R = TypeVar("R")

_GREEDY = Sampling()
#: Of a row that is written on, the state after which the next token comes.
_LAST: Capture[Any] = Capture(frozenset({Site.FINAL_RESIDUAL}), layers=())


@dataclass(frozen=True, slots=True)
class Card:
    """A :class:`lensd_api.ModelCard`."""

    name: str
    revision: str
    dtype: str
    anatomy: Anatomy
    tokens: Tokens
    #: After which a text has ended, as the model was trained.
    end_tokens: frozenset[int] = frozenset()

    def encode(self, text: str, *, special_tokens: bool = True, field: str = "prompt") -> tuple[int, ...]:
        """See :meth:`lensd_api.ModelCard.encode`."""
        return self.tokens.encode(text, special_tokens=special_tokens, field=field)

    def decode(self, tokens: Sequence[int]) -> str:
        """See :meth:`lensd_api.ModelCard.decode`."""
        return self.tokens.decode(tokens)

    def token_text(self, token: int) -> str:
        """See :meth:`lensd_api.ModelCard.token_text`."""
        return self.tokens.token_text(token)

    def encode_chat(self, messages: Sequence[Any], *, field: str = "messages") -> tuple[int, ...]:
        """See :meth:`lensd_api.ModelCard.encode_chat`."""
        return self.tokens.encode_chat(messages, field=field)


class _Handle:
    """What both faces share: the card, and a call that is checked, queued and withdrawn."""

    def __init__(self, card: Card, batcher: Batcher, ticket: Ticket) -> None:
        self._card, self._batcher, self._ticket = card, batcher, ticket
        self.name, self.revision, self.dtype = card.name, card.revision, card.dtype
        self.anatomy = card.anatomy
        self.encode, self.decode = card.encode, card.decode
        self.token_text, self.encode_chat = card.token_text, card.encode_chat

    def _call(
        self, rows: Sequence[Row], captures: Sequence[Capture[Any]], settled: Callable[[ForwardCall], None]
    ) -> ForwardCall:
        """One call for ``rows``, whose captures differ at most in their positions."""
        _check_kinds(captures[0])
        layers = _layers(captures[0], self.anatomy)
        check_sites(self.anatomy, captures[0].sites, layers)
        reduce = captures[0].reduce
        return ForwardCall(
            ticket=self._ticket,
            rows=[prepare(row, capture, self.anatomy) for row, capture in zip(rows, captures, strict=True)],
            sites=frozenset(captures[0].sites),
            layers=layers,
            reduce=None if reduce is None else reduce.fn,
            args=None if reduce is None else reduce.args,
            settled=settled,
        )

    def _generation(
        self,
        rows: Sequence[Row],
        sampling: Sampling,
        capture: Capture[Any] | None,
        tell: Callable[[Event], None],
    ) -> Generation:
        self._ticket.check()
        check_sampling(sampling, self.anatomy)
        prompts = [prepare(row, _LAST, self.anatomy) for row in rows]
        stops = self._card.end_tokens if sampling.stop_tokens is None else frozenset(sampling.stop_tokens)
        writings = [
            Writing(
                sampling,
                seed=sampling.seed + i,
                room=_room(prompt, self.anatomy),
                stop_tokens=stops,
                decode=self.decode,
            )
            for i, prompt in enumerate(prompts)
        ]
        observed = None if capture is None else self._observed(rows, capture)
        return Generation(self._batcher, self._ticket, prompts, writings, observed, tell)

    def _observed(self, rows: Sequence[Row], capture: Capture[Any]) -> Observed:
        call = self._call(rows, [capture] * len(rows), lambda call: None)  # checks all there is to check
        longest = self.anatomy.context_length

        def positions(length: int) -> tuple[int, ...] | None:
            return _positions(capture, length) if length <= longest else None

        return Observed(call.sites, call.layers, call.reduce, call.args, positions)

    def _predicted_rows(self, rows: Sequence[Row]) -> list[Row]:
        for index, row in enumerate(rows):
            if not row.tokens:
                raise InvalidRequest(f"row {index} has no token")
        return [row for row in rows if len(row.tokens) > 1]

    @staticmethod
    def _spread(rows: Sequence[Row], found: Sequence[R], nothing: Callable[[], R]) -> list[R]:
        # A row of one token has nothing before it, and so no log-probability.
        values = iter(found)
        return [next(values) if len(row.tokens) > 1 else nothing() for row in rows]


class AsyncHandle(_Handle):
    """A :class:`lensd_api.ModelHandle`."""

    async def forward(self, rows: Sequence[Row], capture: Capture[R]) -> list[R]:
        """See :meth:`lensd_api.ModelHandle.forward`."""
        return await self._run(rows, [capture] * len(rows))

    async def logprobs(self, rows: Sequence[Row]) -> list[Tensor]:
        """See :meth:`lensd_api.ModelHandle.logprobs`."""
        running = self._predicted_rows(rows)
        found = await self._run(running, [logprob_capture(row) for row in running])
        return self._spread(rows, found, _no_logprobs)

    async def token_statistics(self, rows: Sequence[Row]) -> list[TokenStatistics]:
        """See :meth:`lensd_api.ModelHandle.token_statistics`."""
        running = self._predicted_rows(rows)
        found = await self._run(running, [statistics_capture(row) for row in running])
        return self._spread(rows, found, no_statistics)

    async def generate(
        self, rows: Sequence[Row], sampling: Sampling = _GREEDY, capture: Capture[R] | None = None
    ) -> AsyncGenerator[NewToken | Generated[R], None]:
        """See :meth:`lensd_api.ModelHandle.generate`."""
        if not rows:
            return
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Event] = asyncio.Queue()
        with self._generation(rows, sampling, capture, lambda event: post(loop, events.put_nowait, event)):
            while (event := await events.get()) is not None:
                if isinstance(event, LensdError):
                    raise event
                yield event

    async def _run(self, rows: Sequence[Row], captures: Sequence[Capture[R]]) -> list[R]:
        self._ticket.check()
        if not rows:
            return []
        loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Any]] = loop.create_future()

        def finish(call: ForwardCall) -> None:
            if future.done():
                return
            if call.error is not None:
                future.set_exception(call.error)
            else:
                future.set_result(call.results)

        def settled(call: ForwardCall) -> None:
            post(loop, finish, call)

        call = self._call(rows, captures, settled)
        with _Submitted(self._batcher, call):
            return cast("list[R]", await future)


class BlockingHandle(_Handle):
    """A :class:`lensd_api.BlockingModelHandle`."""

    def forward(self, rows: Sequence[Row], capture: Capture[R]) -> list[R]:
        """See :meth:`lensd_api.ModelHandle.forward`."""
        return self._run(rows, [capture] * len(rows))

    def logprobs(self, rows: Sequence[Row]) -> list[Tensor]:
        """See :meth:`lensd_api.ModelHandle.logprobs`."""
        running = self._predicted_rows(rows)
        found = self._run(running, [logprob_capture(row) for row in running])
        return self._spread(rows, found, _no_logprobs)

    def token_statistics(self, rows: Sequence[Row]) -> list[TokenStatistics]:
        """See :meth:`lensd_api.BlockingModelHandle.token_statistics`."""
        running = self._predicted_rows(rows)
        found = self._run(running, [statistics_capture(row) for row in running])
        return self._spread(rows, found, no_statistics)

    def generate(
        self, rows: Sequence[Row], sampling: Sampling = _GREEDY, capture: Capture[R] | None = None
    ) -> Generator[NewToken | Generated[R], None, None]:
        """See :meth:`lensd_api.ModelHandle.generate`."""
        if not rows:
            return
        events: SimpleQueue[Event] = SimpleQueue()
        with self._generation(rows, sampling, capture, events.put):
            while (event := events.get()) is not None:
                if isinstance(event, LensdError):
                    raise event
                yield event

    def _run(self, rows: Sequence[Row], captures: Sequence[Capture[R]]) -> list[R]:
        self._ticket.check()
        if not rows:
            return []
        future: Future[ForwardCall] = Future()
        call = self._call(rows, captures, future.set_result)
        with _Submitted(self._batcher, call):
            future.result()
        if call.error is not None:
            raise call.error
        return cast("list[R]", call.results)


class _Submitted:
    """Queues a call, and takes it out again when its ticket is cancelled or nobody waits for it."""

    def __init__(self, batcher: Batcher, call: ForwardCall) -> None:
        self._batcher, self._call = batcher, call

    def __enter__(self) -> None:
        self._batcher.submit(self._call)
        self._call.ticket.on_cancel(self._withdraw)

    def __exit__(self, *_: object) -> None:
        ticket = self._call.ticket
        ticket.forget(self._withdraw)
        if not self._call.done:
            self._withdraw()
        waited = self._batcher.elapsed(self._call) - self._call.forward_s
        ticket.usage.queue_s += max(0.0, waited)

    def _withdraw(self) -> None:
        error = self._call.ticket.error() or Cancelled("the forward was given up")
        self._batcher.withdraw(self._call, error)


def _no_logprobs() -> Tensor:
    return torch.empty(0)


def prepare(row: Row, capture: Capture[Any], anatomy: Anatomy) -> PreparedRow:
    """Checks a row and resolves its positions. Raises InvalidRequest."""
    tokens = _integers("tokens", row.tokens)
    length = len(tokens)
    if not length:
        raise InvalidRequest("a row has no token")
    if length > anatomy.context_length:
        raise InvalidRequest(
            f"a row has {length} tokens, but the model's context holds {anatomy.context_length}"
        )
    if min(tokens) < 0 or max(tokens) >= anatomy.vocab_size:
        raise InvalidRequest(f"token ids must lie between 0 and {anatomy.vocab_size - 1}")
    said: dict[str, tuple[int, ...] | None] = {}
    for label, given, limit in (
        ("attention_mask", row.attention_mask, 2),
        ("position_ids", row.position_ids, anatomy.context_length),
    ):
        said[label] = values = None if given is None else _integers(label, given)
        if values is None:
            continue
        if len(values) != length:
            raise InvalidRequest(f"{label} has {len(values)} entries for {length} tokens")
        if min(values) < 0 or max(values) >= limit:
            raise InvalidRequest(f"{label} must lie between 0 and {limit - 1}")
    return PreparedRow(tokens, _positions(capture, length), **said)


def _integers(label: str, values: Sequence[Any]) -> tuple[int, ...]:
    """Whatever sequence an author took, as what can be compared and kept."""
    try:
        return tuple(map(integer, values))
    except TypeError:
        raise InvalidRequest(f"{label} of a row must be whole numbers") from None


def check_sampling(sampling: Sampling, anatomy: Anatomy) -> None:
    """Raises InvalidRequest for what cannot be sampled with."""
    if sampling.max_new_tokens < 1:
        raise InvalidRequest(f"max_new_tokens is {sampling.max_new_tokens}; it must be at least 1")
    if not 0.0 <= sampling.temperature < math.inf:
        raise InvalidRequest(f"temperature is {sampling.temperature}; it must be 0 or more, and finite")
    if sampling.top_k < 0:
        raise InvalidRequest(f"top_k is {sampling.top_k}; it must be 0, for all tokens, or more")
    if not 0.0 < sampling.top_p <= 1.0:
        raise InvalidRequest(f"top_p is {sampling.top_p}; it must be above 0 and at most 1")
    if not 0 <= sampling.seed < 2**53:
        raise InvalidRequest(f"seed is {sampling.seed}; it must lie between 0 and 2**53 - 1")
    if any(not 0 <= token < anatomy.vocab_size for token in sampling.stop_tokens or ()):
        raise InvalidRequest(f"stop_tokens must lie between 0 and {anatomy.vocab_size - 1}")
    if not all(sampling.stop_texts):
        raise InvalidRequest("stop_texts holds an empty text, with which every row begins")


def _room(prompt: PreparedRow, anatomy: Anatomy) -> int:
    """How many tokens may be written: at least the one that a full context still predicts."""
    last = len(prompt.tokens) - 1 if prompt.position_ids is None else max(prompt.position_ids)
    taken = max(len(prompt.tokens), last + 1)
    return max(1, anatomy.context_length - taken)


def _positions(capture: Capture[Any], length: int) -> tuple[int, ...]:
    if capture.positions == "all":
        return tuple(range(length))
    for position in capture.positions:
        if not -length <= position < length:
            raise InvalidRequest(f"position {position} does not exist in a row of {length} tokens")
    return tuple(p % length for p in capture.positions)


def _check_kinds(capture: Capture[Any]) -> None:
    sites: object = capture.sites
    if isinstance(sites, str) or not isinstance(sites, AbstractSet):
        raise InvalidRequest(
            f"Capture.sites is a set of lensd_api.Site, such as {{Site.HEADS}}, not {sites!r}"
        )
    for site in cast("AbstractSet[object]", sites):
        if not isinstance(site, Site):
            raise InvalidRequest(f"Capture.sites holds {site!r}, which is no lensd_api.Site")


def _layers(capture: Capture[Any], anatomy: Anatomy) -> tuple[int, ...]:
    if capture.layers is None:
        return tuple(range(anatomy.n_layers))
    wrong = [layer for layer in capture.layers if not 0 <= layer < anatomy.n_layers]
    if wrong:
        raise InvalidRequest(
            f"layer {wrong[0]} does not exist: the model has layers 0 to {anatomy.n_layers - 1}"
        )
    return tuple(sorted(set(capture.layers)))
