"""Generates the Python stubs of the wire contract; ``--check`` only compares.

protoc names modules after proto paths (``lensd.v1``); the package is ``lensd_proto``, so
imports between the generated modules are rewritten. Run it with ``make proto``.
"""

import argparse
import filecmp
import re
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).parent
STUBS = ROOT / "src" / "lensd_proto" / "v1"
# `*_pb2.pyi` and `*_pb2_grpc.py` import their neighbours by proto path.
_NEIGHBOUR = re.compile(r"^from lensd\.v1 import", re.MULTILINE)


def generate(out: Path) -> None:
    """Writes the stubs of every ``lensd/v1/*.proto`` into ``out``."""
    sources = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "lensd" / "v1").glob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as raw:
        status = protoc.main(
            [
                "protoc",
                f"-I{ROOT}",
                f"-I{well_known}",
                f"--python_out={raw}",
                f"--pyi_out={raw}",
                f"--grpc_python_out={raw}",
                *sources,
            ]
        )
        if status != 0:
            raise SystemExit(status)
        out.mkdir(parents=True, exist_ok=True)
        for path in sorted((Path(raw) / "lensd" / "v1").iterdir()):
            (out / path.name).write_text(_NEIGHBOUR.sub("from lensd_proto.v1 import", path.read_text()))
    (out / "__init__.py").write_text("")


def stale(fresh: Path) -> list[str]:
    """Names of stubs that differ from freshly generated ones."""
    names = {path.name for folder in (fresh, STUBS) for path in folder.glob("*.py*")}
    _, differ, missing = filecmp.cmpfiles(fresh, STUBS, sorted(names), shallow=False)
    return differ + missing


def main() -> None:
    """Command line entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail if the committed stubs are out of date")
    if not parser.parse_args().check:
        generate(STUBS)
        return
    with tempfile.TemporaryDirectory() as fresh:
        generate(Path(fresh))
        if names := stale(Path(fresh)):
            sys.exit(f"out of date: {', '.join(names)}; run `make proto`")


if __name__ == "__main__":
    main()
