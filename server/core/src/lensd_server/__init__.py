"""The lensd daemon."""

import os

__version__ = "0.1.0"

# Read by OpenMP when torch is imported, so it has to stand here. By default its threads spin while they
# wait for each other; beside any other busy process a forward on two cores then takes 5 to 20 times
# as long. Sleeping costs microseconds.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
