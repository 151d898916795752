"""What tests of several areas need."""

from pathlib import Path

import pytest

from tests.authority import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """One that servers and callers of a test trust."""
    return Authority(tmp_path / "authority")
