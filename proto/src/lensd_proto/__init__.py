"""The lensd wire contract.

The messages and stubs are in :mod:`lensd_proto.v1`; ``PROTO_ROOT`` is the folder with the
``.proto`` files themselves, for tools that load them at run time.
"""

from pathlib import Path

__all__ = ["PROTO_ROOT"]

_installed = Path(__file__).parent / "protos"
#: Include path for ``lensd/v1/*.proto`` and the one ``google/rpc`` file they import.
PROTO_ROOT: Path = _installed if _installed.is_dir() else Path(__file__).parents[2]
