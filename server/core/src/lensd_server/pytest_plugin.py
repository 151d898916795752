"""Registers the fixture ``lensd_engine`` with pytest, and the option ``--lensd-device``.

pytest imports this module in every run of an environment that has lensd-server, so nothing heavy is
imported before the fixture is asked for.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lensd_api.testing import Engine


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the option."""
    parser.getgroup("lensd").addoption(
        "--lensd-device",
        default="cpu",
        metavar="DEVICE",
        help="where lensd_engine has its tiny models: cpu (the default), cuda or cuda:N",
    )


@pytest.fixture(scope="session")
def lensd_engine(pytestconfig: pytest.Config) -> "Iterator[Engine]":
    """The real engine with tiny real models resident; see :class:`lensd_api.testing.Engine`."""
    from lensd_api import LoadFailed
    from lensd_server.tiny_engine import TinyEngine

    try:
        engine = TinyEngine(device=str(pytestconfig.getoption("lensd_device")))
    except LoadFailed as failed:
        pytest.exit(f"--lensd-device: {failed.message}", returncode=pytest.ExitCode.USAGE_ERROR)
    try:
        yield engine
    finally:
        engine.close()
