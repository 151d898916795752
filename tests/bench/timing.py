"""Timing of contenders that take turns, so that a change of the machine's pace meets all of them."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

_Asked = TypeVar("_Asked")


def take_turns(
    contenders: Mapping[str, Callable[[_Asked], object]], asked: Iterator[_Asked], turns: int
) -> dict[str, list[float]]:
    """Seconds of every contender on each of the next ``turns`` things asked, in their order."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(turns):
        one = next(asked)
        for name in turn_order(list(contenders), turn):
            start = time.perf_counter()
            contenders[name](one)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def compare_throughput(
    contenders: Mapping[str, Callable[[list[str]], object]],
    prompts: Iterator[str],
    sizes: Mapping[str, int],
    rounds: int,
) -> dict[str, list[float]]:
    """Prompts a second by round: each contender is given ``sizes[name]`` new ones at once."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds):
        for name in turn_order(list(contenders), turn):
            batch = [next(prompts) for _ in range(sizes[name])]
            start = time.perf_counter()
            contenders[name](batch)
            rates[name].append(len(batch) / (time.perf_counter() - start))
    return rates


def turn_order(names: Sequence[str], turn: int) -> list[str]:
    """Nobody always runs after the same neighbour."""
    shift = turn % len(names)
    return [*names[shift:], *names[:shift]]
