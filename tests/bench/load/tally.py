"""How analyses ended: each one is counted once, with what it took."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.bench.load.percentiles import Percentiles

COMPLETED = "COMPLETED"
#: Shares of requests that a table shows.
SHARES = (0.5, 0.9, 0.99, 0.999)


@dataclass(frozen=True, slots=True)
class End:
    """How one analysis ended. ``code`` is ``COMPLETED`` or the name of a gRPC status; times are
    seconds from when the request was due, so that a late sender hides nothing."""

    request_id: str
    kind: str
    code: str
    reason: str = ""
    retry_after_s: float | None = None
    accepted: bool = False
    seconds: float = 0.0
    first_result_s: float | None = None
    faults: Sequence[str] = ()


@dataclass(slots=True)
class Tally:
    """All ends of a run. Latencies are those of completed analyses."""

    offered: int = 0
    ends: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    latency: Percentiles = field(default_factory=Percentiles)
    latency_by_kind: dict[str, Percentiles] = field(default_factory=dict[str, Percentiles])
    first_result: Percentiles = field(default_factory=Percentiles)
    #: Refused for lack of room (RESOURCE_EXHAUSTED, UNAVAILABLE), and of them with a time to retry.
    refused: int = 0
    refused_with_retry: int = 0
    #: Accepted, then ended otherwise than by `completed`, a cancel or a deadline.
    broken: int = 0
    faults: list[str] = field(default_factory=list[str])
    seconds: float = 0.0
    #: How late the sender was at most, in an open loop.
    lateness_s: float = 0.0
    #: Shots that an open loop did not send because too many were out already.
    withheld: int = 0

    def add(self, end: End) -> None:
        """Counts one end."""
        self.ends[end.code, end.reason] += 1
        self.kinds[end.kind, end.code] += 1
        if end.code == COMPLETED:
            self.latency.add(end.seconds)
            self.latency_by_kind.setdefault(end.kind, Percentiles()).add(end.seconds)
            if end.first_result_s is not None:
                self.first_result.add(end.first_result_s)
        elif end.code in ("RESOURCE_EXHAUSTED", "UNAVAILABLE"):
            self.refused += 1
            self.refused_with_retry += end.retry_after_s is not None
        if end.accepted and end.code not in (COMPLETED, "CANCELLED", "DEADLINE_EXCEEDED"):
            self.broken += 1
        if end.faults and len(self.faults) < 100:
            self.faults += [f"{end.request_id} ({end.kind}): {fault}" for fault in end.faults]

    @property
    def ended(self) -> int:
        """Analyses that ended, in whatever way."""
        return self.ends.total()

    @property
    def completed(self) -> int:
        """Analyses that ended with `completed`."""
        return self.ends[COMPLETED, ""]

    def count(self, code: str) -> int:
        """Analyses that ended with ``code``, whatever the reason."""
        return sum(n for (found, _), n in self.ends.items() if found == code)

    @property
    def rate(self) -> float:
        """Completed analyses a second."""
        return self.completed / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """Everything counted."""
        return {
            "offered": self.offered,
            "ended": self.ended,
            "ends": {" ".join(filter(None, key)): n for key, n in sorted(self.ends.items())},
            "kinds": {" ".join(key): n for key, n in sorted(self.kinds.items())},
            "latency_s": _quantiles(self.latency),
            "latency_by_kind_s": {k: _quantiles(v) for k, v in sorted(self.latency_by_kind.items())},
            "first_result_s": _quantiles(self.first_result),
            "refused": self.refused,
            "refused_with_retry": self.refused_with_retry,
            "broken": self.broken,
            "faults": self.faults,
            "seconds": self.seconds,
            "completed_per_s": self.rate,
            "lateness_s": self.lateness_s,
            "withheld": self.withheld,
        }


def _quantiles(found: Percentiles) -> dict[str, float]:
    return {**{f"p{share * 100:g}": found.at(share) for share in SHARES}, "max": found.largest}
