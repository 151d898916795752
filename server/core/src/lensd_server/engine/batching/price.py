"""What a forward costs beside its tokens, measured on this machine: how much padding saving one is worth.

A forward takes nearly ``fixed + slope * tokens`` seconds, so one saved forward pays for ``fixed / slope``
tokens of padding: about 40 on two CPU cores, hundreds on a GPU.
"""

import json
import time
from pathlib import Path
from typing import Any

import torch

from lensd_api import Site
from lensd_server.engine.anatomy.capture import GatherGroup, run_batch
from lensd_server.engine.anatomy.inspect import InspectedModel
from lensd_server.engine.batching.batch import PreparedRow, pad
from lensd_server.engine.device import Device
from lensd_server.engine.models.digests import remember

#: Lengths of the rows that are timed, and how often. The quickest of each counts: a busy machine
#: only ever makes a forward slower.
SHORT, LONG, REPEATS = 8, 72, 3

#: Whatever the clock said: less would never batch, more would pad for ever.
LEAST = 8.0


class Prices:
    """Measurements, remembered under ``folder`` by model, device and threads, if there is one.

    Measuring takes half a second of a start; a machine does not change between two of them.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder

    def worth(self, model: InspectedModel, device: Device, revision: str) -> float:
        """Tokens of padding that one saved forward of ``model`` pays for. Leaves the model warm."""
        if not device.is_cpu:
            # Verification ran only short rows: let the kernels for long ones be chosen now.
            time_forward(model, device, min(LONG, model.anatomy.context_length))
        if self._folder is None:
            return measure(model, device)
        threads = torch.get_num_threads()
        kind = f"{model.module.dtype}-{device.torch.type}-{threads}".removeprefix("torch.")
        memo = self._folder / f"{revision}-{kind}.json"
        known = _read(memo, device)
        if known is None:
            known = measure(model, device)
            remember(memo, json.dumps({"worth": known}).encode())
        return known


def measure(model: InspectedModel, device: Device) -> float:
    """Times a few forwards; within bounds whatever they say."""
    context = model.anatomy.context_length
    short, long = min(SHORT, context), min(LONG, context)
    pairs = [(time_forward(model, device, short), time_forward(model, device, long)) for _ in range(REPEATS)]
    quick, slow = (min(times) for times in zip(*pairs, strict=True))
    if long == short or slow <= quick:
        return _most(device)
    slope = (slow - quick) / (long - short)
    return min(_most(device), max(LEAST, (quick - slope * short) / slope))


def time_forward(model: InspectedModel, device: Device, length: int) -> float:
    """Seconds that one row of ``length`` tokens takes."""
    row = PreparedRow(tokens=(0,) * length, positions=(length - 1,))
    inputs = pad([row])
    group = GatherGroup(frozenset({Site.FINAL_RESIDUAL}), (), rows=(0,), positions=(row.positions,))
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


def _most(device: Device) -> float:
    return device.batch_tokens / 4


def _read(memo: Path, device: Device) -> float | None:
    try:
        content: Any = json.loads(memo.read_bytes())
        worth = float(content["worth"])
    except (OSError, ValueError, TypeError, KeyError):  # absent or damaged: measure again
        return None
    return worth if LEAST <= worth <= _most(device) else None
