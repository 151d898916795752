"""What else is installed must not keep the daemon from starting."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


def test_it_starts_where_scikit_learn_is_installed(tmp_path: Path) -> None:
    """transformers imports it where it is there, and it imports SciPy."""
    pytest.importorskip("scipy")
    package, info = tmp_path / "sklearn", tmp_path / "scikit_learn-1.0.dist-info"
    package.mkdir()
    (package / "__init__.py").write_text("from scipy.sparse import csr_array")
    (package / "metrics.py").write_text("def __getattr__(name): return None")
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: scikit-learn\nVersion: 1.0\n")
    program = (
        "import sys\n"
        "sys.argv = ['lensd', 'serve', '--listen', '127.0.0.1:0', '--admin-listen', '127.0.0.1:0',\n"
        f"            '--metrics-listen', '127.0.0.1:0', '--state-dir', {str(tmp_path / 'state')!r},\n"
        "            '--model', 'none=dir:/nowhere']\n"
        "from lensd_server.cli import main\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    told = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120
    )
    assert "model none could not be loaded" in told.stderr, told.stderr[-3000:]
