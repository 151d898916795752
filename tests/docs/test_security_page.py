"""The operator's journeys of server/deploy/SECURITY.md, run as they stand in one shell."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.blocks import read_blocks
from tests.e2e.daemon import save_tiny_models
from tests.ports import free_ports

PAGE = Path(__file__).parents[2] / "server" / "deploy" / "SECURITY.md"
PORTS = ("50051", "50052", "9464", "9090")
PROGRAMS = ("openssl", "curl", "prometheus", "promtool")


def journey(model: Path) -> str:
    """All blocks of the page as one script, with a tiny model, on ports that are free."""
    parts = ["set -euo pipefail"]
    for block in read_blocks(PAGE):
        if block.language == "toml":
            table = f'[models.smollm2-135m]\nsource = "dir:{model}"\npreload = true\n'
            parts.append(f"cat > lensd.toml <<'END'\n{block.text}\n{table}END")
        else:
            assert block.language == "sh", f"{PAGE}:{block.line}: nothing runs {block.language}"
            parts.append(block.text)
    free = dict(zip(PORTS, map(str, free_ports(len(PORTS))), strict=True))
    return re.sub("|".join(PORTS), lambda shown: free[shown[0]], "\n".join(parts))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not all(map(shutil.which, PROGRAMS)), reason=f"the journeys need {', '.join(PROGRAMS)}")
def test_the_journeys_work_as_they_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "operator"
    folder.mkdir()
    script = journey(save_tiny_models(tmp_path / "models", "llama") / "llama")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("LENSD_")} | {
        "PATH": path,
        "LENSD_SERVER__CACHE_DIR": str(tmp_path / "cache"),
    }
    with (folder / "journey.log").open("w") as log:
        # In a group of its own, so that nothing of it is left behind.
        process = subprocess.Popen(
            ["bash", "-xc", script],
            cwd=folder,
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=540)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    logs = {log.name: log.read_text() for log in folder.glob("*.log")}
    assert status == 0, "".join(f"\n--- {name}\n{text[-6000:]}" for name, text in logs.items())
    audit = (folder / "audit.jsonl").read_text()
    assert "ADMIN_LISTENER_ONLY" in audit or "SCOPE_MISSING" in audit
    assert "NO_CREDENTIALS" in audit
    assert '"caller": "ops"' in audit
    assert 'lensd_tls_certificate_expiry_timestamp_seconds{listener="public"}' in logs["journey.log"]
    secrets = [file.read_text().strip() for file in folder.glob("*.token")]
    everything = audit + "".join(text for name, text in logs.items() if name != "journey.log")
    assert secrets
    assert not any(secret in everything for secret in secrets)
    assert 'alertname="LensdConfigRefused"' in logs["journey.log"]
    assert "certificate read again" in everything
    assert "tokens read again" in everything
