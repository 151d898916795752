"""``python -m tests.fuzz``: that many attempts of a seed at a daemon; ends with status 1 at a broken promise."""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.fuzz.campaign import Tally, campaign, fuzzed_daemon, grew

_SHOWN = 20


def main() -> str | None:
    """What went wrong, or nothing."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--requests", type=int, default=200_000, help="how many attempts [200000]")
    parser.add_argument("--seed", type=int, default=0, help="what they are made from [0]")
    parser.add_argument("--seconds", type=float, help="at most for so long")
    parser.add_argument("--only", type=int, metavar="INDEX", help="this one attempt, and show it")
    chosen = parser.parse_args()
    one = chosen.only is not None
    indices = range(chosen.only, chosen.only + 1) if one else range(chosen.requests)
    with tempfile.TemporaryDirectory(prefix="lensd-fuzz-") as folder, fuzzed_daemon(Path(folder)) as daemon:
        tally = campaign(daemon, chosen.seed, indices, chosen.seconds)
        _show(tally)
        for attempt, end in tally.faults[:_SHOWN]:
            print(
                f"\n{'; '.join(end.faults)}\n  --seed {chosen.seed} --only {attempt.index}\n{attempt}",
                flush=True,
            )
        if one and tally.faults:
            print(daemon.log.read_text())
    if tally.faults:
        return f"{len(tally.faults)} attempts of {tally.made} broke a promise"
    return None if one else grew(tally) or None


def _show(tally: Tally) -> None:
    rate = tally.made / tally.seconds
    print(f"{tally.made} attempts in {tally.seconds:.1f} s ({rate:.0f} a second), ", end="")
    print(f"resident set {tally.grown_bytes / 2**20:+.1f} MiB after warming up")
    print(f"  by tenths, MiB: {' '.join(f'{size / 2**20:.0f}' for size in tally.course)}")
    codes = Counter[str]()
    for (_, code, reason), count in tally.ends.items():
        codes[f"{code} {reason}".strip()] += count
    for code, count in codes.most_common():
        print(f"{count:8} {code}")


if __name__ == "__main__":
    sys.exit(main())
