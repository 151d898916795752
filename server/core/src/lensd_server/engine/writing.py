"""Rows that a model writes on, a token at a time, each step an ordinary row in the queue.

After every token it is decided on the device's thread, before the next batch is built, whether a row goes
on: rows of all requests thus keep sharing batches, and who is waited for, cancelled or late is seen where
it is for every other row.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from lensd_api import NewToken, Sampling, StopReason
from lensd_server.engine.batching.batch import PreparedRow
from lensd_server.engine.batching.call import Following, ForwardCall
from lensd_server.engine.sampling import Choice, Draw


class Writing:
    """What has been written of one row so far."""

    def __init__(
        self,
        sampling: Sampling,
        *,
        seed: int,
        room: int,
        stop_tokens: frozenset[int],
        decode: Callable[[Sequence[int]], str],
    ) -> None:
        self._sampling, self._room, self._stop_tokens, self._decode = sampling, room, stop_tokens, decode
        self._generator = torch.Generator().manual_seed(seed)
        self._uniform: float | None = None
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.stop: StopReason | None = None if room > 0 else StopReason.CONTEXT

    def draw(self) -> Draw:
        """How the next token is chosen: the same until one has been added, should a batch be run again."""
        own = self._sampling
        if self._uniform is None:
            self._uniform = float(torch.rand((), generator=self._generator, dtype=torch.float64))
        return Draw(own.temperature, own.top_k, own.top_p, self._uniform)

    def add(self, choice: Choice) -> None:
        """Writes a token, which may be the last."""
        self._uniform = None
        self.tokens.append(choice.token)
        self.logprobs.append(choice.logprob)
        if choice.token in self._stop_tokens:
            self.stop = StopReason.END_TOKEN
        elif self._sampling.stop_texts and self._stopped_at(self._decode(self.tokens)) is not None:
            self.stop = StopReason.STOP_TEXT
        elif len(self.tokens) >= self._sampling.max_new_tokens:
            self.stop = StopReason.MAX_NEW_TOKENS
        elif len(self.tokens) >= self._room:
            self.stop = StopReason.CONTEXT

    @property
    def text(self) -> str:
        """What has been written, without a stop token and what begins with a stop text."""
        ended = self.stop is StopReason.END_TOKEN
        text = self._decode(self.tokens[:-1] if ended else self.tokens)
        return text[: self._stopped_at(text)] if self.stop is StopReason.STOP_TEXT else text

    def _stopped_at(self, text: str) -> int | None:
        return min((at for stop in self._sampling.stop_texts if (at := text.find(stop)) >= 0), default=None)


@dataclass(slots=True, eq=False, kw_only=True)
class WritingCall(ForwardCall):
    """Rows that are written on. Row ``i`` is answered with ``writings[i]`` once that has stopped.

    ``told`` is called with every token and ``ended`` with every row that has stopped, on the device's
    thread; they must return at once. With ``after``
    the finished row, last token and all, goes on as row ``i`` of that call, which nobody has submitted.
    """

    writings: Sequence[Writing]
    told: Callable[[NewToken], None]
    ended: Callable[[int], None]
    after: ForwardCall | None = None
    #: The positions that ``after`` asks for in a row of so many tokens; ``None`` for a row it cannot read.
    after_positions: Callable[[int], tuple[int, ...] | None] = lambda length: None

    @property
    def grows(self) -> bool:
        """See :attr:`ForwardCall.grows`."""
        return True

    def argument(self, index: int) -> Draw:
        """How the next token of a row is chosen."""
        return self.writings[index].draw()

    def put(self, index: int, value: Any) -> Following | None:
        """Writes a token; the row goes on until it has stopped."""
        if self.done:
            return None
        writing = self.writings[index]
        writing.add(value)
        grown = _grown(self.rows[index], value.token)
        self.told(NewToken(index, value.token, value.logprob))
        if writing.stop is None:
            self.set_row(index, grown)
            return self, index
        positions = self.after_positions(len(grown.tokens))
        ForwardCall.put(self, index, writing)
        self.ended(index)
        if self.after is None or positions is None:
            return None
        self.after.set_row(index, replace(grown, positions=positions))
        return self.after, index


@dataclass(slots=True, eq=False, kw_only=True)
class TellingCall(ForwardCall):
    """A call that tells of each row as it is answered, on the device's thread."""

    told: Callable[[int, Any], None]

    def put(self, index: int, value: Any) -> Following | None:
        """See :meth:`ForwardCall.put`."""
        if not self.done:
            self.told(index, value)
        return ForwardCall.put(self, index, value)


def _grown(row: PreparedRow, token: int) -> PreparedRow:
    return PreparedRow(
        tokens=(*row.tokens, token),
        positions=(len(row.tokens),),
        attention_mask=None if row.attention_mask is None else (*row.attention_mask, 1),
        position_ids=None if row.position_ids is None else (*row.position_ids, row.position_ids[-1] + 1),
    )
