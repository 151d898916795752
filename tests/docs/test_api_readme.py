"""The analyzers that the author's README shows run as they stand there."""

from pathlib import Path
from typing import Any

import pytest

from lensd_api import Analyzer
from lensd_api.testing import Engine, Job
from tests.docs.blocks import Block, read_blocks

README = Path(__file__).parents[2] / "server/api/README.md"
ANALYZERS = [b for b in read_blocks(README) if b.language == "python" and "def lensd_analyzers" in b.text]


@pytest.mark.parametrize("block", ANALYZERS, ids=lambda block: f"line-{block.line}")
def test_its_examples_run_on_a_real_model(block: Block, lensd_engine: Engine) -> None:
    names: dict[str, Any] = {"__name__": "shown"}
    exec(compile(block.text, f"{README}:{block.line}", "exec"), names)
    analyzers: list[Analyzer] = names["lensd_analyzers"]()
    for analyzer in analyzers:
        for example in analyzer.examples:
            outcome = lensd_engine.run(analyzer, Job(example.params, lensd_engine.models[0]))
            assert outcome.error is None
            assert outcome.results


def test_what_it_shows_of_generation_is_among_them() -> None:
    assert any("ctx.model.generate(" in block.text for block in ANALYZERS)
