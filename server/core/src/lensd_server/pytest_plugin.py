"""Registers the fixture ``lensd_engine`` with pytest.

pytest imports this module in every run of an environment that has lensd-server, so nothing heavy is
imported before the fixture is asked for.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from lensd_api.testing import Engine


@pytest.fixture(scope="session")
def lensd_engine() -> "Iterator[Engine]":
    """The real engine with tiny real models resident; see :class:`lensd_api.testing.Engine`."""
    from lensd_server.tiny_engine import TinyEngine

    engine = TinyEngine()
    try:
        yield engine
    finally:
        engine.close()
