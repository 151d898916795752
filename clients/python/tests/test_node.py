"""The Node.js example, against the scripted server."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import grpc
import pytest

from lensd_proto import PROTO_ROOT

_EXAMPLE = Path(__file__).parents[2] / "node"


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its packages installed."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    root = tmp_path_factory.mktemp("node")
    (root / "proto").symlink_to(PROTO_ROOT)
    folder = root / "clients" / "node"
    shutil.copytree(_EXAMPLE, folder, ignore=shutil.ignore_patterns("node_modules", "package-lock.json"))
    quiet = ["--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
    subprocess.run([npm, "install", *quiet], cwd=folder, check=True, timeout=240)
    return folder


def _run(example: Path, target: str) -> "subprocess.CompletedProcess[str]":
    command = ["node", str(example / "attribute.mjs"), "Hi", target]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.node
def test_it_prints_the_target_and_the_largest_contributions(
    example: Path, fake: Any, new_script: Any
) -> None:
    script = new_script("n1").accepted()
    script.table(
        "contributions", part=0, last=False, kind=["embed", "attn"], layer=[None, 1], value=[0.5, -2.0]
    )
    script.table("contributions", part=1, kind=["mlp"], layer=[3], value=[1.0])
    script.record("summary", {"target": " there", "logit": 3.25, "completeness_error": 2e-6})
    fake.play(script.completed())
    result = _run(example, fake.target)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.splitlines() == [
        'Hi → " there", logit 3.2500',
        "the contributions add up to it within 2.0e-6",
        "  -2.0000  attn 1",
        "   1.0000  mlp 3",
        "   0.5000  embed",
    ]
    (request,) = fake.requests
    assert request.params.fields["prompt"].string_value == "Hi"


@pytest.mark.node
def test_it_shows_reason_and_violations_of_an_error(
    example: Path, fake: Any, new_script: Any, new_status: Any
) -> None:
    status = new_status(
        grpc.StatusCode.INVALID_ARGUMENT, "bad", reason="INVALID_PARAMS", violations={"unit": "no such unit"}
    )
    fake.play(new_script().abort(grpc.StatusCode.INVALID_ARGUMENT, "bad", status=status))
    result = _run(example, fake.target)
    assert result.returncode == 1
    assert result.stderr.splitlines() == ["INVALID_ARGUMENT INVALID_PARAMS: bad", "  unit: no such unit"]


@pytest.mark.node
def test_it_does_not_take_a_truncated_stream_for_an_answer(example: Path, fake: Any, new_script: Any) -> None:
    fake.play(new_script().accepted())
    result = _run(example, fake.target)
    assert result.returncode == 1
    assert "incomplete" in result.stderr
