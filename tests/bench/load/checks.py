"""What must hold of the streams of a run: each ended once, nothing was lost, nothing came twice."""

from collections import Counter
from dataclasses import dataclass, field

from tests.bench.load.scrape import Scrape
from tests.bench.load.tally import End, Tally
from tests.bench.report import Check


@dataclass(slots=True)
class Ledger:
    """Every request id that ended, and how often; give :meth:`note` to the loops."""

    ids: Counter[str] = field(default_factory=Counter[str])

    def note(self, end: End) -> None:
        """One end."""
        self.ids[end.request_id] += 1


def stream_checks(tally: Tally, ledger: Ledger) -> list[Check]:
    """What the client saw."""
    twice = [name for name, ends in ledger.ids.items() if ends > 1]
    first_fault = f": {tally.faults[0]}" if tally.faults else ""
    return [
        Check(
            "every request ended exactly once",
            f"{tally.offered} sent, {len(ledger.ids)} ended, {len(twice)} twice",
            tally.offered == len(ledger.ids) and not twice,
        ),
        Check(
            "sequence numbers, request ids, parts, digests, counts of `completed`",
            f"{len(tally.faults)} faults{first_fault}",
            not tally.faults,
        ),
        Check(
            "accepted ones completed, or were cancelled or ran out of time",
            f"{tally.broken} ended otherwise",
            not tally.broken,
        ),
        Check(
            "refused ones say when to try again",
            f"{tally.refused_with_retry} of {tally.refused}",
            tally.refused == tally.refused_with_retry,
        ),
        Check(
            "no INTERNAL, UNKNOWN, DATA_LOSS or truncated stream",
            f"{_unexpected(tally)}",
            not _unexpected(tally),
        ),
    ]


def server_checks(tally: Tally, added: Scrape) -> list[Check]:
    """Whether the server counted what the client saw: ``added`` to its metrics by this run alone.

    What was given up on the way may have completed there; more or less than that may not.
    """
    if not added.has("lensd_analyses_total"):
        return []
    ok = int(added.total("lensd_analyses_total", outcome="ok"))
    given_up = tally.count("CANCELLED") + tally.count("DEADLINE_EXCEEDED")
    return [
        Check(
            "the server completed what the client read to the end",
            f"{ok} there, {tally.completed} here, {given_up} given up",
            tally.completed <= ok <= tally.completed + given_up,
        )
    ]


def _unexpected(tally: Tally) -> int:
    return sum(map(tally.count, ("INTERNAL", "UNKNOWN", "DATA_LOSS", "TRUNCATED", "UNIMPLEMENTED")))
