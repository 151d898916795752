"""What tests of several areas need."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from lensd_server.access.audit import LOGGER
from tests.authority import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """One that servers and callers of a test trust."""
    return Authority(tmp_path / "authority")


@pytest.fixture
def restored_audit() -> Iterator[None]:
    """Logging and the audit as they were afterwards, since they are set up process-wide."""
    root, audit = logging.getLogger(), logging.getLogger(LOGGER)
    handlers, level, audit_level = root.handlers[:], root.level, audit.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for handler in audit.handlers[:]:
        audit.removeHandler(handler)
        handler.close()
    audit.setLevel(audit_level)
    structlog.reset_defaults()
