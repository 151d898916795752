"""One caller at a time: an analysis by head over gRPC, and in the engine, beside a bare forward pass."""

import statistics
import tempfile
from itertools import islice
from pathlib import Path

from tests.bench.contenders import BareForward, Engine, OverGrpc, converted_weights
from tests.bench.prompts import distinct_prompts
from tests.bench.report import Ratio, Report, pairwise, scaled
from tests.bench.timing import take_turns
from tests.e2e.daemon import running_daemon

WORDS = 14
PAIRS = 60
MOST = 1.15
_BARE = "bare transformers forward"


def measure(share: float) -> Report:
    """Every contender runs each prompt once, in turns."""
    pairs = scaled(PAIRS, share, 4)
    bare, engine = BareForward(converted_weights()), Engine()
    warm_up = list(islice(distinct_prompts(WORDS, seed=1), 4))
    prompts = list(islice(distinct_prompts(WORDS, seed=2), pairs))
    bare.prepare([*warm_up, *prompts])
    with tempfile.TemporaryDirectory() as state, running_daemon(Path(state)) as daemon:
        grpc = OverGrpc(daemon.grpc, 1)
        contenders = {"bare": bare.run, "engine": engine.run, "grpc": grpc.run}
        take_turns(contenders, iter(warm_up), len(warm_up))
        found = take_turns(contenders, iter(prompts), pairs)
        grpc.close()
    engine.close()
    return Report(
        name="latency",
        setting=f"SmolLM2-135M, {bare.tokens(prompts[0])} tokens, DLA by head, one at a time; every prompt differs",
        ratios=[
            Ratio("time of dla over gRPC", _BARE, pairwise(found["grpc"], found["bare"]), at_most=MOST),
            Ratio("time of dla in the engine", _BARE, pairwise(found["engine"], found["bare"])),
        ],
        figures=[
            (f"{_name(name)}, median", f"{statistics.median(s) * 1e3:.1f} ms") for name, s in found.items()
        ],
    )


def _name(contender: str) -> str:
    return {"bare": _BARE, "engine": "dla in the engine", "grpc": "dla over gRPC"}[contender]
