"""The ``lensctl`` command: lensd from a shell."""

from lensd_client.lensctl import analyze, listings, operate
from lensd_client.lensctl.app import lensctl

for _command in (*analyze.COMMANDS, *listings.COMMANDS, *operate.COMMANDS):
    lensctl.add_command(_command)

main = lensctl

__all__ = ["main"]
