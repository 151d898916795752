"""The README names everything there is, and nothing there is not."""

import json
import re
from pathlib import Path

from lensd_graphtracer import GraphTracer, GraphTracerParams
from lensd_graphtracer.features import FEATURES, Family
from lensd_graphtracer.formats import FORMATS
from lensd_graphtracer.idg import PIVOTS
from lensd_graphtracer.index import MAX_TERMS
from plugins.graphtracer.tests.test_scale import MEMORY_10_000_STEPS_MIB, MEMORY_130_STEPS_MIB

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def first_cells(heading: str) -> set[str]:
    """Names in back-quotes in the first column of the table below ``heading``."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_every_parameter_is_described() -> None:
    assert first_cells("Parameters") == set(GraphTracerParams.model_fields)


def test_every_result_is_described() -> None:
    assert first_cells("Results") == {spec.name for spec in GraphTracer.results}


def test_every_format_is_named() -> None:
    assert all(f"`{known.name}`" in README for known in FORMATS)


def test_the_shown_request_is_valid() -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    GraphTracerParams.parse(json.loads(shown))


def test_the_stated_numbers_are_those_in_force() -> None:
    peer, directed = len(FEATURES[Family.PEER]), len(FEATURES[Family.DIRECTED])
    assert f"over {peer + directed} features" in README
    assert f"({peer} for conversations" in README
    assert f"from {PIVOTS} nodes on" in README
    assert f"{MAX_TERMS:,} terms" in README
    assert f"{MEMORY_130_STEPS_MIB} MiB" in README
    assert f"{MEMORY_10_000_STEPS_MIB} MiB" in README


def test_the_paper_is_not_cited_without_its_withdrawal() -> None:
    assert "withdrawn" in README.split("2510.10581")[1][:80]
