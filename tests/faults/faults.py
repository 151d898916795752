"""The whole matrix, in the order in which it is run: what ends the daemon comes last."""

from tests.faults.client_faults import CLIENT_FAULTS
from tests.faults.disk_faults import DISK_FAULTS
from tests.faults.matrix import Fault
from tests.faults.plugin_faults import FATAL_PLUGIN_FAULTS, PLUGIN_FAULTS
from tests.faults.process_faults import PROCESS_FAULTS

FAULTS: tuple[Fault, ...] = (
    *PLUGIN_FAULTS,
    *DISK_FAULTS,
    *CLIENT_FAULTS,
    *PROCESS_FAULTS,
    *FATAL_PLUGIN_FAULTS,
)
