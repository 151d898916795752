"""A fit whose process is killed goes on in the next one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = """
import asyncio, json, sys
from contextlib import aclosing
from pathlib import Path
from lensd_api.testing import Job
from lensd_server.engine.events import Found, Progress
from lensd_server.tiny_engine import TinyEngine
from lensd_vsa_probe import VsaFit, fitting

fitting.SAVE_WAVES = fitting.SAVE_EPOCHS = 1
engine = TinyEngine(("llama",), state_dir=Path(sys.argv[1]))
params = {"artifact": "killed", "corpus": "facts-young", "dim": 128, "epochs": 8, "batch": 16,
    # A wave of sixteen is one batch, whatever this process has measured forwards to take.
    "rows_at_once": 16}

async def run():
    async with aclosing(engine._start(VsaFit(), Job(params, "llama"))) as events:
        async for event in events:
            if isinstance(event, Progress):
                print(event.stage.partition(":")[0], event.done, flush=True)
            elif isinstance(event, Found) and event.result.name == "artifact":
                print("stored", event.result.values["sha256"], flush=True)

asyncio.run_coroutine_threadsafe(run(), engine._loop).result()
"""


def run(state: Path, kill_at: str = "") -> list[str]:
    """Lines of a fit in a process of its own, which dies by SIGKILL at the line ``kill_at``."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(state)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert child.stdout is not None
    lines: list[str] = []
    for line in child.stdout:
        lines.append(line.strip())
        if kill_at and line.startswith(kill_at):
            child.kill()
    child.stdout.close()
    assert child.wait(60) == (-signal.SIGKILL if kill_at else 0)
    return lines


@pytest.mark.slow
def test_a_fit_that_was_killed_ends_in_the_artifact_of_one_that_was_not(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")[-1]
    assert whole.startswith("stored ")
    run(tmp_path / "cut", kill_at="training probe 5")
    assert not (tmp_path / "cut" / "artifacts").exists(), "nothing half-done is stored"
    resumed = run(tmp_path / "cut")
    assert not any(line.startswith("reading states") for line in resumed), "states are not read again"
    assert resumed[0].startswith(("training probe 5", "training probe 6", "training probe 7"))
    assert resumed[-1] == whole
