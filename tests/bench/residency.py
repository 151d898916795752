"""Two models under a budget for one and a half of them, asked for in turns by many at once, and a third that is broken.

The second model is the first with one layer halved: as large, but with answers of its own, so that an
answer from the wrong weights shows. Each answer must be what the same model says alone.
"""

import asyncio
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.torch import load_file, save_file

from lensd_client import AsyncClient
from lensd_client.errors import LensdError
from tests.bench.contenders import converted_weights
from tests.bench.load.scrape import Scrape
from tests.bench.load.watch import Watched, compare, settled
from tests.bench.prompts import distinct_prompts
from tests.bench.report import Check, Report, scaled
from tests.e2e.daemon import Daemon, running_daemon

REQUESTS, CLIENTS = 500, 8
#: In turns by so many, as callers with a few things to ask do.
_A_TURN = 5
#: Of all requests, for the model that cannot be loaded.
_BROKEN = 0.02
MODELS = ("first", "second")
TIMES = 1.5
#: Nobody may wait for ever: a deadlock shows as this.
TIMEOUT_S = 120.0
TOLERANCE = 1e-5


@dataclass(slots=True)
class _Seen:
    ends: Counter[str] = field(default_factory=Counter[str])
    wrong: int = 0
    broken_served: int = 0


def measure(share: float) -> Report:
    """All requests from a fixed number of clients; then nothing may be held."""
    requests = scaled(REQUESTS, share, 4 * _A_TURN)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = _configure(folder)
        with running_daemon(folder, "--config", str(config)) as daemon:
            seen, added, checks, seconds = asyncio.run(_run(daemon, requests))
    loads = added.total("lensd_model_loads_total", outcome="ok")
    evictions = added.total("lensd_model_evictions_total")
    other = {end: n for end, n in seen.ends.items() if end not in ("ok", "broken refused")}
    return Report(
        name="residency",
        setting=f"two models of SmolLM2's size, room for {TIMES:g} of them, {requests} requests by {CLIENTS} clients, "
        f"{_A_TURN} of one model in a row, {_BROKEN:.0%} for a model whose file is cut off",
        checks=[
            Check("every request was answered within its time", f"{dict(seen.ends)}", not other),
            Check("every answer is its own model's", f"{seen.wrong} are not", not seen.wrong),
            Check("models were evicted, and counted", f"{evictions:.0f} evictions, {loads:.0f} loads", evictions > 0),
            Check("the broken model served nobody", f"{seen.broken_served}", not seen.broken_served),
            *checks,
        ],
        figures=[("requests a load", f"{requests / max(1.0, loads):.1f}"), ("in all", f"{seconds:.0f} s")],
    )  # fmt: skip


async def _run(daemon: Daemon, requests: int) -> tuple[_Seen, Scrape, list[Check], float]:
    watched, prompts = (
        Watched.of(daemon),
        [prompt for prompt, _ in zip(distinct_prompts(12, 61), range(8), strict=False)],
    )
    async with AsyncClient(daemon.grpc) as lens:
        alone = {(m, p): await _ask(lens, m, p) for m in MODELS for p in prompts}
        before, counted = await settled(watched, MODELS), watched.scrape()
        seen, started = _Seen(), time.monotonic()
        draw = random.Random(62)
        asked = [
            "broken" if draw.random() < _BROKEN else MODELS[number // _A_TURN % 2]
            for number in range(requests)
        ]
        left = iter(asked)

        async def client() -> None:
            for model in left:
                prompt = draw.choice(prompts)
                await _note(seen, lens, model, prompt, alone.get((model, prompt)))

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        seconds = time.monotonic() - started
    after = await settled(watched, MODELS, before)
    added = watched.scrape().since(counted)
    # Which of the two is resident at the end, and so has a revision to tell, is chance.
    checks = [check for check in compare(before, after) if not check.what.startswith("model revisions")]
    return seen, added, checks, seconds


async def _note(
    seen: _Seen, lens: AsyncClient, model: str, prompt: str, expected: Sequence[float] | None
) -> None:
    try:
        found = await _ask(lens, model, prompt)
    except LensdError as error:
        is_broken = model == "broken" and error.code != "DEADLINE_EXCEEDED"
        seen.ends["broken refused" if is_broken else f"{model}: {error.reason}"] += 1
        return
    seen.ends["ok"] += 1
    if expected is None:
        seen.broken_served += 1
    elif np.abs(np.subtract(found, expected)).max() > TOLERANCE * np.abs(expected).max():
        seen.wrong += 1


async def _ask(lens: AsyncClient, model: str, prompt: str) -> list[float]:
    run = await lens.analyze("dla", model, prompt=prompt, unit="component", target=10, timeout_s=TIMEOUT_S)
    return run["contributions"]["value"].tolist()


def _configure(folder: Path) -> Path:
    """Writes the two models, the broken one and a configuration with room for one and a half."""
    source = converted_weights()
    other, broken = folder / "second", folder / "broken"
    for copy in (other, broken):
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.safetensors", "manifest*"))
    weights = load_file(source / "model.safetensors")
    weights["model.layers.15.mlp.down_proj.weight"] *= 0.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    size = (source / "model.safetensors").stat().st_size
    with (source / "model.safetensors").open("rb") as whole, (broken / "model.safetensors").open("wb") as cut:
        cut.write(whole.read(size // 2))
    lines = [f"[limits]\nmemory_bytes = {int(TIMES * size)}"]
    for name, where in (("first", source), ("second", other), ("broken", broken)):
        lines.append(f"[models.{name}]\nsource = {json.dumps(f'dir:{where}')}")
    config = folder / "lensd.toml"
    config.write_text("\n".join(lines), encoding="utf-8")
    return config
