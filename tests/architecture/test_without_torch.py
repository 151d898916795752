"""What authors and callers import must come up on a machine that has no torch."""

import subprocess
import sys

import pytest

_IMPORT_ALL = """
import importlib, pkgutil, sys

for blocked in ("torch", "transformers", "lensd_server"):
    sys.modules[blocked] = None  # any import of it raises

package = importlib.import_module(sys.argv[1])
names = [m.name for m in pkgutil.walk_packages(package.__path__, package.__name__ + ".")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(*names)
"""


@pytest.mark.parametrize(
    ("package", "expected"),
    [
        ("lensd_proto", "lensd_proto.v1.analysis_pb2"),
        ("lensd_api", "lensd_api.model"),
        ("lensd_client", "lensd_client.lensctl"),
    ],
)
def test_every_module_imports_with_torch_blocked(package: str, expected: str) -> None:
    done = subprocess.run([sys.executable, "-c", _IMPORT_ALL, package], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout.split()
