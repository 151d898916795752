"""One row of the matrix: a fault, what is promised when it happens, and what did happen."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.site import Site
from tests.faults.traffic import traffic

#: Answers that callers get before a fault and after it.
_ANSWERS = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """``inject`` does it, asserts what whoever caused it is promised, and says what that was.

    ``others`` are the errors that callers who have nothing to do with it may get meanwhile; ``cuts`` says
    that these may include requests of theirs which were accepted already.
    """

    name: str
    inject: Callable[[Site], str]
    others: frozenset[str] = frozenset()
    cuts: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a fault did. ``unfinished``: requests of other callers that were accepted and not completed.

    ``pause_s``: the longest time in which no other caller had an answer. That is as callers see it: gRPC's
    own wait before it connects again is part of it.
    """

    fault: str
    seen: str
    answered: int
    failures: Counter[str]
    unfinished: int
    pause_s: float
    restarted: bool

    @property
    def row(self) -> str:
        """A line of the table."""
        failed = ", ".join(f"{count} x `{outcome}`" for outcome, count in sorted(self.failures.items()))
        others = f"{self.answered} answered" + (f", {failed}" if failed else ", none failed")
        again = f"{self.pause_s:.2f} s" + (" (started anew)" if self.restarted else "")
        return f"| {self.fault} | {self.seen} | {others} | {self.unfinished} | {again} |"


HEADER = (
    "| fault | what its caller saw | what two other callers saw | accepted of theirs and not completed "
    "| longest time without an answer |\n| --- | --- | --- | --- | --- |"
)


def suffer(fault: Fault, site: Site) -> Outcome:
    """Lets ``fault`` happen under traffic and checks what everybody is promised.

    Whatever was answered was complete and right, nobody else got an error that ``others`` does not
    name, nor lost what had been accepted unless the fault ``cuts``, and afterwards the site serves and has nothing left of it.
    """
    if site.daemon.process.poll() is not None:
        site.start()
    starts = site.starts
    with traffic(lambda: site.daemon.grpc, site.right) as others:
        others.wait(_ANSWERS, time.monotonic())
        begun = time.monotonic()
        seen = fault.inject(site)
        others.wait(_ANSWERS, time.monotonic())
    attempts, failures = others.since(begun), others.failures(begun)
    unexpected = {outcome for outcome in failures if outcome not in fault.others}
    assert not unexpected, f"callers who had nothing to do with it got {failures}"
    unfinished = others.unfinished(begun)
    assert fault.cuts or not unfinished, f"{unfinished} accepted requests were not completed: {failures}"
    return Outcome(
        fault=fault.name,
        seen=seen,
        answered=sum(attempt.outcome == "ok" for attempt in attempts),
        failures=failures,
        unfinished=unfinished,
        pause_s=others.pause_s(begun),
        restarted=site.starts > starts,
    )
