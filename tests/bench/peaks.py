"""Peak memory of one way to work, each in a process of its own: ``python -m tests.bench.peaks``.

Prints one JSON object: bytes resident at most during a bare forward of the engine's own module, and
during analyses, with one prompt at a time and with sixteen.
"""

import json
import sys
from itertools import islice

from tests.bench.contenders import BareForward, Engine, converted_weights
from tests.bench.memory import forget_peak, peak_bytes
from tests.bench.prompts import distinct_prompts
from tests.bench.report import scaled

_ROUNDS = 12


def main() -> None:
    """Measures in an order that lets what comes first grow the process first."""
    words, many, share = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    rounds = scaled(_ROUNDS, share)
    prompts = distinct_prompts(words, seed=3)
    engine = Engine()
    bare = BareForward(converted_weights())
    bare.module = engine.module  # one copy of the weights: the engine's
    found: dict[str, int | None] = {}
    for name, size in (("one", 1), ("many", many)):
        batches = [list(islice(prompts, size)) for _ in range(2 * rounds)]
        for batch in batches:
            bare.prepare(batch)
        forget_peak()
        for batch in batches[:rounds]:
            bare.run_batch(batch)
        found[f"bare_{name}"] = peak_bytes()
        forget_peak()
        for batch in batches[rounds:]:
            engine.run_all(batch, size)
        found[f"engine_{name}"] = peak_bytes()
    print(json.dumps(found))
    engine.close()


if __name__ == "__main__":
    main()
