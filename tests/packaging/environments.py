"""Virtual environments for tests of what is installed, made without downloading torch again."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment: its folder and where built wheels lie."""

    folder: Path
    wheels: Path

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.folder / "bin" / "python"

    def install(self, *requirements: str, index: bool = True) -> None:
        """Installs with this repository's wheels; without ``index`` nothing is downloaded."""
        # The environment has no pip of its own: making one takes longer than all the rest.
        done = subprocess.run(
            [
                *(sys.executable, "-m", "pip", "--python", str(self.python), "install", "-qq"),
                *("--disable-pip-version-check", "--find-links", str(self.wheels)),
                *(("--constraint", str(ROOT / ".ci" / "constraints.txt")) if index else ("--no-index",)),
                "--no-build-isolation",
                *requirements,
            ],
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"pip install {requirements}:\n{done.stderr}"

    def run(self, *command: str, cwd: Path | None = None) -> str:
        """Runs a command of this environment, which must succeed; returns its standard output."""
        done = self.attempt(*command, cwd=cwd)
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def attempt(self, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Runs a command of this environment to its end."""
        return subprocess.run(
            self.command(*command), cwd=cwd or self.folder, env=self.variables, capture_output=True, text=True
        )

    def command(self, name: str, *arguments: str) -> list[str]:
        """Full command line of a program of this environment."""
        return [str(self.folder / "bin" / name), *arguments]

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables without those that would let other packages in."""
        hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"}
        kept = {name: value for name, value in os.environ.items() if name not in hidden}
        return {**kept, "PATH": f"{self.folder / 'bin'}{os.pathsep}{kept.get('PATH', '')}"}


def build_wheels(folders: Sequence[str], out: Path) -> Path:
    """Builds the wheel of each distribution into ``out``."""
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "-qq", "--disable-pip-version-check"),
            *("--no-deps", "--no-build-isolation", "--wheel-dir", str(out)),
            *(str(ROOT / folder) for folder in folders),
        ],
        check=True,
    )
    return out


def link_third_party(out: Path) -> Path:
    """Links everything installed here except lensd itself and its editable hooks into ``out``."""
    site = Path(sysconfig.get_path("purelib"))
    for entry in site.iterdir():
        if "lensd" not in entry.name and not entry.name.startswith("__"):
            (out / entry.name).symlink_to(entry)
    return out


def make_environment(folder: Path, wheels: Path, third_party: Path | None = None) -> Environment:
    """An environment without pip that sees ``third_party``, or nothing."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    if third_party is not None:
        (site,) = folder.glob("lib/python*/site-packages")
        (site / "third_party.pth").write_text(f"{third_party}\n")
    return Environment(folder, wheels)
