"""The requests of a run, drawn from a seed: the same profile always asks for the same."""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from google.protobuf.struct_pb2 import Struct

from lensd_proto.v1 import analysis_pb2
from tests.bench.load.mix import USUAL, Ask, Lengths, ask
from tests.bench.load.subject import SMOLLM2, Subject


@dataclass(frozen=True, slots=True)
class Profile:
    """What is drawn. Shares are from 0 to 1; times are drawn evenly from their ranges."""

    subject: Subject = SMOLLM2
    mix: Mapping[str, float] = field(default_factory=lambda: dict(USUAL))
    lengths: Lengths = field(default_factory=lambda: Lengths(8, 128))
    #: Analyses the client gives up, and how long after they were sent.
    cancels: float = 0.0
    cancel_after_s: tuple[float, float] = (0.0, 1.0)
    #: Analyses that carry a deadline.
    deadlines: float = 0.0
    deadline_s: tuple[float, float] = (0.05, 5.0)
    #: Analyses of batch priority.
    batch: float = 0.0
    #: Analyses that travel on one ``AnalyzeMany`` stream, not as a call of their own.
    many: float = 0.0
    seed: int = 0

    def but(self, **changes: object) -> "Profile":
        """The same with some things changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class Shot:
    """One request, ready to be sent."""

    request_id: str
    ask: Ask
    cancel_after_s: float | None = None
    timeout_s: float | None = None
    batch: bool = False
    many: bool = False

    def message(self) -> analysis_pb2.AnalyzeRequest:
        """As it goes over the wire; a deadline is the call's own, except on a stream of many."""
        params = Struct()
        params.update(self.ask.params)
        message = analysis_pb2.AnalyzeRequest(
            request_id=self.request_id,
            model=self.ask.model,
            analyzer=self.ask.analyzer,
            params=params,
            priority=analysis_pb2.PRIORITY_BATCH if self.batch else analysis_pb2.PRIORITY_INTERACTIVE,
        )
        if self.many and self.timeout_s is not None:
            message.timeout.FromNanoseconds(int(self.timeout_s * 1e9))
        return message


def shots(profile: Profile, name: str = "load") -> Iterator[Shot]:
    """Endless requests; ``name`` begins each request id, so that two runs share none."""
    draw = random.Random(profile.seed)
    kinds, weights = list(profile.mix), list(profile.mix.values())
    number = 0
    while True:
        (kind,) = draw.choices(kinds, weights)
        asked = ask(kind, profile.subject, profile.lengths.draw(draw), draw)
        yield Shot(
            request_id=f"{name}-{profile.seed}-{number}",
            ask=asked,
            cancel_after_s=_sometimes(draw, profile.cancels, profile.cancel_after_s),
            timeout_s=_sometimes(draw, profile.deadlines, profile.deadline_s),
            batch=draw.random() < profile.batch,
            many=draw.random() < profile.many,
        )
        number += 1


def _sometimes(draw: random.Random, share: float, between: tuple[float, float]) -> float | None:
    happens, value = draw.random() < share, draw.uniform(*between)
    return value if happens else None
