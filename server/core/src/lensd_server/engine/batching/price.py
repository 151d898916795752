"""What a forward costs on this machine, measured: seconds by padded tokens.

On two CPU cores that is nearly a straight line, ``fixed + slope * tokens``; on a GPU it is flat until the
device is busy and a line from there. So it is kept as measured points with straight lines between them.
"""

import json
import math
import re
import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch

from lensd_api import Site
from lensd_server.engine.anatomy.capture import GatherGroup, run_batch
from lensd_server.engine.anatomy.inspect import InspectedModel
from lensd_server.engine.batching.batch import PreparedRow, Step, pad
from lensd_server.engine.device import Device
from lensd_server.engine.models.digests import remember
from lensd_server.engine.models.products import library

#: The lengths of a short and of an ordinary row; larger forwards are timed with several of the latter.
SHORT, ORDINARY = 8, 64
#: How often each size is timed. The quickest counts: a busy machine only ever makes a forward slower.
REPEATS = 3
#: What is remembered is measured again where a forward takes less than this share of it.
OUTDONE = 0.8
#: No forward is timed that should take longer than this, so that measuring stays a small part of a start.
LONGEST_S = 0.4
#: What is proportional may not be so to the last digit.
_ROUNDED = 1 + 1e-9
#: A device is saturated where twice the tokens bring at most this much more throughput.
GAIN = 0.04


@dataclass(frozen=True, slots=True)
class Price:
    """Seconds of a forward at some sizes: at least two, sizes rising, seconds never falling, nor those for a token
    rising."""

    points: tuple[tuple[int, float], ...]

    @classmethod
    def linear(cls, fixed_s: float, token_s: float) -> Self:
        """``fixed_s + token_s * tokens``."""
        return cls(((1, fixed_s + token_s), (1024, fixed_s + 1024 * token_s)))

    def seconds(self, tokens: float) -> float:
        """What a forward of ``tokens`` padded tokens takes; the outermost lines go on."""
        points = self.points
        n = min(max(1, bisect_right(points, (tokens, math.inf))), len(points) - 1)
        (few, quick), (many, slow) = points[n - 1], points[n]
        return max(0.0, quick + (slow - quick) * (tokens - few) / (many - few))

    def tokens_within(self, seconds: float) -> int:
        """The most tokens of a forward that takes at most ``seconds``; 0 when none does."""
        below, above = 0, 1
        while self.seconds(above) <= seconds:
            below, above = above, 2 * above
            if above > 1 << 30:  # the last line is flat
                return below
        while above - below > 1:
            middle = (below + above) // 2
            below, above = (middle, above) if self.seconds(middle) <= seconds else (below, middle)
        return below

    def worth(self, tokens: int) -> float:
        """How many tokens more, in a forward of up to ``tokens``, take as long as one forward's fixed part."""
        fixed = self.seconds(1)
        rise = self.seconds(tokens) - fixed
        return fixed * tokens / rise if rise > 0.0 else math.inf

    def saturation(self, least: int, most: int) -> int:
        """Where more tokens in a batch bring hardly more throughput, between the two bounds."""
        sizes = range(least, most, 8)
        return next((n for n in sizes if 2 * self.seconds(n) <= (1 + GAIN) * self.seconds(2 * n)), most)


class Prices:
    """Measurements, remembered under ``folder`` by model, device, threads and library, if there is one.

    Measuring takes a second or two of a start; a machine does not change between two of them. But it may have been
    busy when it was measured: one forward shows whether it was.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def of(self, model: InspectedModel, device: Device, revision: str) -> Price:
        """The price of a forward of ``model``. Leaves the model warm."""
        if not device.is_cpu:
            # Verification ran only short rows: let the kernels for long ones be chosen now.
            time_forward(model, device, [min(ORDINARY, model.anatomy.context_length)])
        if self._folder is None:
            return measure(model, device)
        dtype = str(model.module.dtype).removeprefix("torch.")
        kind = f"{dtype}-{device.model}-{torch.get_num_threads()}-{library(model.module)}"
        memo = self._folder / f"{revision}-{re.sub(r'[^A-Za-z0-9.-]+', '_', kind)}.json"
        known = _read(memo)
        if known is None or _is_outdone(known, model, device):
            known = measure(model, device)
            remember(memo, json.dumps({"points": known.points}).encode())
        return known


def _is_outdone(known: Price, model: InspectedModel, device: Device) -> bool:
    """Whether a forward now is so much quicker that other work must have slowed down what is remembered."""
    ordinary = max(2, min(ORDINARY, model.anatomy.context_length))
    if time_forward(model, device, [ordinary]) < OUTDONE * known.seconds(ordinary):
        return True
    few, many = known.points[-2:]
    if not _hardly_pays(few, many):
        return False
    # The end of all gain, unless it was held up each time.
    rows = [ordinary] * (many[0] // ordinary)
    return not _hardly_pays(few, (sum(rows), time_forward(model, device, rows)))


def measure(model: InspectedModel, device: Device) -> Price:
    """Times a few forwards, twice as large each time, until the device is saturated or they take long."""
    most = device.batch_tokens[1]
    points: list[tuple[int, float]] = []
    for lengths in _sizes(model.anatomy.context_length):
        tokens = sum(lengths)
        if len(points) > 1 and (tokens > most or Price(tuple(points)).seconds(tokens) > LONGEST_S):
            break
        seconds = _quickest(model, device, lengths)
        if points and _hardly_pays(points[-1], (tokens, seconds)):
            # The end of all gain, or somebody else's work just now: too small a batch would cost much for long.
            seconds = min(seconds, _quickest(model, device, lengths))
        points.append((tokens, _believable(points, tokens, seconds)))
        if len(points) > 1 and points[-2][0] >= ORDINARY and _hardly_pays(*points[-2:]):
            break
    return Price(tuple(points))


def _hardly_pays(few: tuple[int, float], many: tuple[int, float]) -> bool:
    """Whether forwards of ``many`` tokens bring hardly more throughput than those of ``few``."""
    return many[0] * few[1] <= (1 + GAIN) * few[0] * many[1]


def _believable(points: Sequence[tuple[int, float]], tokens: int, seconds: float) -> float:
    """What a forward can have taken by what smaller ones took: no less, and no more than several of those."""
    if not points:
        return seconds
    few, quick = points[-1]
    return min(max(seconds, quick), quick * tokens / few)


def _quickest(model: InspectedModel, device: Device, lengths: Sequence[int]) -> float:
    """Of a few tries, or of one where the machine is so busy that a start would suffer."""
    tries = [time_forward(model, device, lengths)]
    while len(tries) < REPEATS and sum(tries) < 2 * LONGEST_S:
        tries.append(time_forward(model, device, lengths))
    return min(tries)


def _sizes(context: int) -> Iterator[list[int]]:
    """Rows of ever larger forwards: one short row, an ordinary one, two of those, four and so on."""
    ordinary = max(2, min(ORDINARY, context))
    yield [min(SHORT, ordinary // 2)]
    rows = 1
    while True:
        yield [ordinary] * rows
        rows *= 2


def time_forward(model: InspectedModel, device: Device, lengths: Sequence[int]) -> float:
    """Seconds that rows of ``lengths`` take together."""
    rows = [PreparedRow(tokens=(0,) * length, positions=(length - 1,)) for length in lengths]
    inputs = pad([Step.whole(row) for row in rows])
    group = GatherGroup(
        frozenset({Site.FINAL_RESIDUAL}),
        (),
        rows=tuple(range(len(rows))),
        positions=tuple(row.positions for row in rows),
    )
    started = time.perf_counter()
    run_batch(
        model,
        device.put(inputs.input_ids),
        inputs.attention_mask,
        None,
        inputs.lengths,
        [group],
    )
    device.synchronize()
    return time.perf_counter() - started


def _read(memo: Path) -> Price | None:
    try:
        content: Any = json.loads(memo.read_bytes())
        points = tuple((int(tokens), float(seconds)) for tokens, seconds in content["points"])
    except (OSError, ValueError, TypeError, KeyError):  # absent or damaged: measure again
        return None
    sound = len(points) > 1 and points[0][0] > 0 and points[0][1] > 0.0 and math.isfinite(points[-1][1])
    return Price(points) if sound and all(_follows(a, b) for a, b in pairwise(points)) else None


def _follows(few: tuple[int, float], many: tuple[int, float]) -> bool:
    """Whether one point may come after the other; that of an earlier version may not, where a token costs more."""
    return few[0] < many[0] and few[1] <= many[1] and many[1] / many[0] <= few[1] / few[0] * _ROUNDED
