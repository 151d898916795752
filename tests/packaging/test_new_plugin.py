"""What a stranger does: make a plugin, install it, see it, test it, call it."""

import json
import re
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
    folder = root / "lensd-my-lens"
    environment.install(f"{folder}[test]", index=False)
    return environment, folder


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
    (mine,) = json.loads(environment.run("lensd", "plugins", "--json"))["plugins"]
    assert (mine["distribution"], mine["status"], mine["problem"]) == ("lensd-my-lens", "active", "")
    assert mine["analyzers"] == ["my-lens"]


def test_its_own_tests_pass(stranger: tuple[Environment, Path]) -> None:
    environment, folder = stranger
    done = environment.attempt("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout.splitlines()[-1]


def test_no_name_of_the_template_is_left(stranger: tuple[Environment, Path]) -> None:
    _, folder = stranger
    names = re.compile(rb"lensd[-_]template|TokenCount|token-count")
    # What a build or a test run left beside it is not what was written.
    written = [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    assert len(written) >= 5
    assert [p.name for p in written if names.search(p.read_bytes())] == []


def test_it_answers_over_grpc(daemon: Daemon) -> None:
    with Client(daemon.grpc) as lens:
        assert [analyzer.name for analyzer in lens.analyzers()] == ["my-lens"]
        (count,) = lens.analyze("my-lens", model="tiny", prompt="Hello there")["tokens"]["count"]
    assert count == len(tiny_tokenizer()("Hello there")["input_ids"])


def test_it_answers_on_the_command_line(stranger: tuple[Environment, Path], daemon: Daemon) -> None:
    environment, _ = stranger
    flags = ("analyze", "my-lens", "--model", "tiny", "--set", "prompt=Hello there", "--json")
    lines = [
        json.loads(line) for line in environment.run("lensctl", "--target", daemon.grpc, *flags).splitlines()
    ]
    assert [line["event"] for line in lines if line["event"] != "progress"] == [
        "accepted",
        "result",
        "completed",
    ]
