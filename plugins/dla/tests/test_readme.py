"""The README names everything there is, and nothing there is not."""

import json
import re
from pathlib import Path

from lensd_api import Unit
from lensd_dla import Dla, DlaParams
from lensd_dla.completeness import TOLERANCES

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def first_cells(heading: str) -> set[str]:
    """Names in back-quotes in the first column of the table below ``heading``."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_every_parameter_is_described() -> None:
    assert first_cells("Parameters") == set(DlaParams.model_fields)


def test_every_result_is_described() -> None:
    assert first_cells("Results") == {spec.name for spec in Dla.results}


def test_every_unit_is_described() -> None:
    assert first_cells("What it computes") == {unit.value for unit in Unit}


def test_the_shown_request_is_valid() -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    assert DlaParams.parse(json.loads(shown)).unit is Unit.HEAD


def test_the_stated_tolerances_are_those_in_force() -> None:
    for name, stated in (("float32", "1e-5"), ("float16", "2e-3"), ("bfloat16", "1e-2")):
        assert f"{stated} in {name}" in README
        assert TOLERANCES[name] == float(stated)
