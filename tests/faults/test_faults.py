"""Whatever goes wrong hurts whom it must, and nobody else: the real daemon, under traffic.

``python -m tests.faults`` prints the same as a table.
"""

from collections.abc import Iterator

import pytest

from tests.faults.faults import FAULTS
from tests.faults.matrix import Fault, suffer
from tests.faults.site import Site

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.close()


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_costs_no_more_than_is_promised(site: Site, fault: Fault) -> None:
    outcome = suffer(fault, site)
    assert outcome.answered > 0
