"""A run of the load generator as a report: how analyses ended and what they took, relative to the median."""

from collections.abc import Sequence

from rich.console import Console

from tests.bench.load.plan import Profile
from tests.bench.load.soak import Loop
from tests.bench.load.tally import COMPLETED, SHARES, Tally
from tests.bench.report import console_of_any_width, table_rows


def describe(profile: Profile, loop: Loop) -> str:
    """The setting in a sentence."""
    how = f"{loop.clients} clients" if loop.rate is None else f"{loop.rate:g} requests a second (Poisson)"
    total = sum(profile.mix.values())
    mix = ", ".join(f"{name} {weight / total:.0%}" for name, weight in profile.mix.items())
    shares = ", ".join(
        f"{what} {share:.0%}"
        for what, share in (
            ("cancelled", profile.cancels),
            ("with a deadline", profile.deadlines),
            ("of batch priority", profile.batch),
            ("on AnalyzeMany", profile.many),
        )
        if share
    )
    lengths = f"{profile.lengths.low} to {profile.lengths.high} tokens"
    return f"{profile.subject.model}; {how}; {lengths}; {mix}{'; ' + shares if shares else ''}; seed {profile.seed}"


def print_tally(tally: Tally, console: Console | None = None) -> None:
    """Ends by status and reason, then latencies by kind."""
    console = console or console_of_any_width()
    console.print(table_rows(("ended with", "reason", "analyses", "share"), _ends(tally)))
    console.print(
        table_rows(("completed", "n", "p50 ms", *_heads(), "largest", "p50 x all"), _latencies(tally))
    )
    first = tally.first_result
    if first.count:
        console.print(
            f"first result: p50 {first.at(0.5) * 1e3:.1f} ms, {first.at(0.5) / tally.latency.at(0.5):.2f} of the whole"
        )
    console.print(
        f"{tally.offered} sent and {tally.ended} ended in {tally.seconds:.1f} s, {tally.rate:.1f} completed a second; "
        f"sender late by at most {tally.lateness_s * 1e3:.0f} ms, {tally.withheld} not sent"
    )


def _ends(tally: Tally) -> list[Sequence[str]]:
    return [
        (code, reason, str(n), f"{n / tally.ended:.1%}")
        for (code, reason), n in sorted(tally.ends.items(), key=lambda end: (end[0][0] != COMPLETED, -end[1]))
    ]


def _heads() -> list[str]:
    return [f"p{share * 100:g} x p50" for share in SHARES[1:]]


def _latencies(tally: Tally) -> list[Sequence[str]]:
    everything = {"all": tally.latency, **dict(sorted(tally.latency_by_kind.items()))}
    rows: list[Sequence[str]] = []
    for name, found in everything.items():
        median = found.at(0.5)
        if median:
            tail = [f"{found.at(share) / median:.2f}" for share in SHARES[1:]]
            rows.append(
                (
                    name,
                    str(found.count),
                    f"{median * 1e3:.1f}",
                    *tail,
                    f"{found.largest / median:.2f}",
                    f"{median / tally.latency.at(0.5):.2f}",
                )
            )
    return rows
