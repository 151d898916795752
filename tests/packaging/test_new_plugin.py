"""What a stranger does: make a plugin, install it, see it, test it, call it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lensd_client import Client
from lensd_server.tiny_models import tiny_model, tiny_tokenizer
from tests.e2e.daemon import Daemon, running_daemon
from tests.packaging.environments import Environment, make_environment

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stranger(
    tmp_path_factory: pytest.TempPathFactory, wheels: Path, third_party: Path
) -> tuple[Environment, Path]:
    """A fresh environment with lensd and a plugin made by ``lensd new-plugin``, and its folder."""
    root = tmp_path_factory.mktemp("stranger")
    environment = make_environment(root / "venv", wheels, third_party)
    environment.install("lensd-server", "lensd-client", index=False)
    environment.run("lensd", "new-plugin", "my-lens", cwd=root)
    environment.install(f"{root / 'my-lens'}[test]", index=False)
    return environment, root / "my-lens"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, stranger: tuple[Environment, Path]) -> Iterator[Daemon]:
    """The daemon of that environment, serving a tiny model."""
    folder = tmp_path_factory.mktemp("daemon")
    tiny_model("gpt2").save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    environment, _ = stranger
    lensd = environment.folder / "bin" / "lensd"
    with running_daemon(folder, "--model", f"tiny=dir:{folder / 'tiny'}", lensd=lensd) as running:
        yield running


def test_the_server_finds_it(stranger: tuple[Environment, Path]) -> None:
    environment, _ = stranger
    (line,) = [line for line in environment.run("lensd", "plugins").splitlines() if "my-lens" in line]
    assert "active" in line


def test_its_own_tests_pass(stranger: tuple[Environment, Path]) -> None:
    environment, folder = stranger
    done = environment.attempt("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout.splitlines()[-1]


def test_its_code_keeps_to_the_rules_it_came_with(stranger: tuple[Environment, Path]) -> None:
    _, folder = stranger
    left = [p for p in folder.rglob("*") if p.is_file() and b"lensd_template" in p.read_bytes()]
    assert left == [], "names of the template are left"
    done = subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--isolated", str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout


def test_it_answers_over_grpc(daemon: Daemon) -> None:
    with Client(daemon.grpc) as lens:
        mine = [a for a in lens.analyzers() if "my-lens" in a.distribution]
        assert len(mine) == 1
        run = lens.analyze(mine[0].name, model="tiny", prompt="Hello there")
        (count,) = run["tokens"]["count"]
    assert count == len(tiny_tokenizer()("Hello there")["input_ids"])


def test_it_answers_on_the_command_line(stranger: tuple[Environment, Path], daemon: Daemon) -> None:
    environment, _ = stranger
    listed = environment.run("lensctl", "--target", daemon.grpc, "analyzers")
    (name,) = [word for line in listed.splitlines() if "my-lens" in line for word in line.split()[:1]]
    flags = ("analyze", name, "--model", "tiny", "--set", "prompt=Hello there", "--json")
    lines = [
        json.loads(line) for line in environment.run("lensctl", "--target", daemon.grpc, *flags).splitlines()
    ]
    assert [line["event"] for line in lines if line["event"] != "progress"] == [
        "accepted",
        "result",
        "completed",
    ]
