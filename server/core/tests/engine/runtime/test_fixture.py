"""The fixture that analyzers are tested with is the real engine."""

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from lensd_api import Analyzer, BaseParams, Capture, Example, InvalidParams, Row, Site, Table
from lensd_api.testing import AnalyzerConformance, Engine, Job


class Params(BaseParams):
    prompt: str


class Norms(Analyzer):
    """Length of the residual stream at each position."""

    name = "norms"
    Params = Params
    examples = (Example("short", "one value a token", {"prompt": "The capital of France is"}),)

    async def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Any]:
        row = Row(ctx.model.encode(params.prompt))
        (found,) = await ctx.model.forward([row], Capture(frozenset({Site.FINAL_RESIDUAL}), positions="all"))
        yield Table("norms", {"norm": found[Site.FINAL_RESIDUAL].norm(dim=-1)})


class TestNorms(AnalyzerConformance):
    analyzer = Norms()


def test_it_has_models_of_several_kinds(lensd_engine: Engine) -> None:
    assert set(lensd_engine.models) == {"gpt2", "llama", "mixtral"}
    assert lensd_engine.card("mixtral").anatomy.n_experts > 0


def test_an_error_is_an_outcome(lensd_engine: Engine) -> None:
    outcome = lensd_engine.run(Norms(), Job({"promt": "x"}, "llama"))
    assert isinstance(outcome.error, InvalidParams)


def test_registering_it_imports_nothing_heavy() -> None:
    code = "import sys, lensd_server.pytest_plugin; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_a_device_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "def test_it(lensd_engine): pass\ndef test_again(lensd_engine): pass\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "--lensd-device", "cuda:99", str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert told.returncode == pytest.ExitCode.USAGE_ERROR
    assert (told.stdout + told.stderr).count("device 'cuda:99' does not exist") == 1
