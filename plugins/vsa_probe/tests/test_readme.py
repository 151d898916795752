"""The README names everything there is, and nothing there is not."""

import json
import re
from pathlib import Path

from lensd_vsa_probe import FitParams, ProbeParams, VsaFit, VsaProbe
from lensd_vsa_probe.algebra import default_threshold

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def first_cells(heading: str) -> set[str]:
    """Names in back-quotes in the first column of the table below ``heading``."""
    section = README.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_every_parameter_is_described() -> None:
    assert first_cells("Parameters of vsa-fit") == set(FitParams.model_fields)
    assert first_cells("Parameters of vsa-probe") == set(ProbeParams.model_fields)


def test_every_result_is_described() -> None:
    assert first_cells("Results") == {spec.name for spec in (*VsaFit.results, *VsaProbe.results)}


def test_the_shown_request_is_valid() -> None:
    (shown,) = re.findall(r"```json\n(.*?)```", README, re.DOTALL)
    assert ProbeParams.parse(json.loads(shown)).artifact == VsaFit.examples[0].params["artifact"]


def test_the_stated_thresholds_are_those_in_force() -> None:
    assert "0.1 at D = 4096, 0.2 at 1024" in README
    assert (default_threshold(4096), default_threshold(1024)) == (0.1, 0.2)
