"""``python -m tests.faults``: runs the matrix once and prints it as a Markdown table."""

import argparse
import re
import sys
import tempfile
from pathlib import Path

from tests.faults.faults import FAULTS
from tests.faults.matrix import HEADER, suffer
from tests.faults.site import Site


def main() -> None:
    """Prints a row as soon as its fault is over; ends with status 1 at a broken promise."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--only", default="", help="a regular expression that the fault's name must match somewhere"
    )
    chosen = re.compile(parser.parse_args().only)
    with tempfile.TemporaryDirectory(prefix="lensd-faults-") as folder:
        site = Site(Path(folder))
        print(HEADER)
        try:
            for fault in (fault for fault in FAULTS if chosen.search(fault.name)):
                print(suffer(fault, site).row, flush=True)
        finally:
            site.close()


if __name__ == "__main__":
    sys.exit(main())
