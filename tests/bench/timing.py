"""Timing of contenders that take turns, so that a change of the machine's pace meets all of them."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Latency:
    """Seconds of one contender and, pair by pair, how they compare with the baseline's."""

    median_s: float
    #: Median over pairs of seconds divided by the baseline's seconds for the same prompt.
    ratio: float


def take_turns(
    contenders: Mapping[str, Callable[[str], object]], prompts: Iterator[str], pairs: int
) -> dict[str, Latency]:
    """Runs every contender on every prompt. The first one is the baseline of the ratios."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(pairs):
        prompt = next(prompts)
        shift = turn % len(names)  # nobody always runs after the same neighbour
        for name in names[shift:] + names[:shift]:
            start = time.perf_counter()
            contenders[name](prompt)
            seconds[name].append(time.perf_counter() - start)
    base = seconds[names[0]]
    return {
        name: Latency(
            statistics.median(taken),
            statistics.median(mine / other for mine, other in zip(taken, base, strict=True)),
        )
        for name, taken in seconds.items()
    }


@dataclass(frozen=True, slots=True)
class Throughput:
    """Requests a second of one contender, and its ratio to the baseline's in the same round."""

    median_per_s: float
    ratio: float


def compare_throughput(
    contenders: Mapping[str, Callable[[list[str]], object]],
    prompts: Iterator[str],
    sizes: Mapping[str, int],
    rounds: int,
) -> dict[str, Throughput]:
    """Gives each contender ``sizes[name]`` prompts at once, round by round; the first is the baseline."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            batch = [next(prompts) for _ in range(sizes[name])]
            start = time.perf_counter()
            run(batch)
            rates[name].append(len(batch) / (time.perf_counter() - start))
    base = rates[next(iter(contenders))]
    return {
        name: Throughput(
            statistics.median(mine),
            statistics.median(a / b for a, b in zip(mine, base, strict=True)),
        )
        for name, mine in rates.items()
    }
