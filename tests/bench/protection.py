"""One caller of a daemon with TLS, a token and metrics, beside one of a daemon with none of them.

Three daemons run the same prompts in turns: one that counts nothing, one as it is by default, and one
with a certificate that asks for a token.
"""

import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from tests.bench.certificate import write_certificate
from tests.bench.contenders import UNIT, OverGrpc
from tests.bench.prompts import distinct_prompts
from tests.bench.report import Ratio, Report, pairwise, scaled
from tests.bench.timing import take_turns
from tests.e2e.daemon import running_daemon

WORDS, PAIRS = 14, 150
MOST = 1.02
_NAMES = {
    "bare": "no metrics, TLS or token",
    "measured": "metrics",
    "protected": "metrics, TLS and token",
}


def measure(share: float) -> Report:
    """Every daemon runs each prompt once, in turns."""
    pairs = scaled(PAIRS, share, 4)
    prompts = distinct_prompts(WORDS, seed=71)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        callers = {kind: stack.enter_context(_caller(Path(name) / kind, kind)) for kind in _NAMES}
        contenders = {kind: caller.run for kind, caller in callers.items()}
        take_turns(contenders, islice(prompts, 4), 4)
        found = take_turns(contenders, prompts, pairs)
    return Report(
        name="protection",
        setting=f"SmolLM2-135M, prompts of {WORDS} words, DLA by {UNIT}, one caller at a time; every prompt differs",
        ratios=[
            Ratio(f"time with {_NAMES[kind]}", _NAMES["bare"], pairwise(found[kind], found["bare"]), at_most=most)
            for kind, most in (("protected", MOST), ("measured", None))
        ],
        figures=[(f"{label}, median", f"{statistics.median(found[kind]) * 1e3:.2f} ms") for kind, label in _NAMES.items()],
    )  # fmt: skip


@contextlib.contextmanager
def _caller(folder: Path, kind: str) -> Iterator[OverGrpc]:
    """A caller of a daemon of its own."""
    folder.mkdir()
    environment, connection = {}, dict[str, Any]()
    if kind == "protected":
        cert, key = write_certificate(folder)
        tokens = folder / "tokens.json"
        command = [Path(sys.executable).with_name("lensd"), "token", "--file", tokens]
        new = [*command, "new", "bench", "--scope", "analyze", "--scope", "read"]
        made = subprocess.run(new, stdout=subprocess.PIPE, text=True, check=True)
        environment = {
            "LENSD_TLS__CERT": str(cert),
            "LENSD_TLS__KEY": str(key),
            "LENSD_AUTH__TOKEN_FILE": str(tokens),
        }
        connection = {"ca": cert, "token": made.stdout.strip()}
    lensd = _unmeasured(folder) if kind == "bare" else None
    environment["PYTHONPATH"] = str(Path(__file__).parents[2])
    with running_daemon(folder, environment=environment, lensd=lensd) as daemon:
        caller = OverGrpc(daemon.grpc, 1, **connection)
        yield caller
        caller.close()


def _unmeasured(folder: Path) -> Path:
    """A command in place of ``lensd``."""
    script = folder / "lensd"
    script.write_text(f"#!{sys.executable}\nfrom tests.bench.unmeasured import main\n\nmain()\n")
    script.chmod(0o755)
    return script
