"""What lies at the top of the repository."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "CHANGELOG.md",
    "LICENSE",
    "Makefile",
    "README.md",
    "clients",
    "plugins",
    "proto",
    "pyproject.toml",
    "server",
    "tests",
}


def _tracked() -> list[str]:
    if not (ROOT / ".git").exists() or shutil.which("git") is None:
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_the_top_level_is_exactly_the_agreed_list() -> None:
    tops = {name.partition("/")[0] for name in _tracked()}
    assert {top for top in tops if not top.startswith(".")} == ALLOWED


def test_every_distribution_has_a_readme_a_licence_and_says_what_it_is() -> None:
    for project in sorted(ROOT.glob("*/pyproject.toml")) + sorted(ROOT.glob("*/*/pyproject.toml")):
        folder, text = project.parent, project.read_text()
        assert len((folder / "README.md").read_text().split()) > 30, f"{folder.name}: README.md says nothing"
        assert 'license = "Apache-2.0"' in text, folder
        assert 'requires-python = ">=3.11"' in text, folder
        assert (folder / "src").is_dir(), folder


def test_files_are_not_named_for_nothing_in_particular() -> None:
    vague = {"utils", "util", "helpers", "helper", "manager", "common", "misc"}
    assert [name for name in _tracked() if Path(name).stem in vague or vague & set(Path(name).parts)] == []
