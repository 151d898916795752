"""Who did what to the server, and who was not let in: lines for a person who asks afterwards.

Nothing here is a token or a prompt. The lines go to the logger ``lensd.audit`` at any log level,
and to ``auth.audit_file`` where that is set.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from lensd_api.errors import LensdError

LOGGER = "lensd.audit"
#: Refusals written in one second; a flood of them must not fill the disk.
_MAX_REFUSALS_PER_S = 20
_SIGNAL = "signal SIGHUP"


class Audit:
    """Writes the lines. One instance a process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = structlog.get_logger(LOGGER)
        self._clock = clock
        self._second = 0
        self._written = 0
        self._left_out = 0

    def acted(self, *, caller: str, peer: str, method: str, subject: str, code: str) -> None:
        """A call of admin scope ended with ``code``. ``subject`` is what it named, or nothing."""
        self._log.info(
            "admin call", caller=caller or peer, peer=peer, method=method, subject=subject, code=code
        )

    def reloaded(self, *, applied: Sequence[str], needs_restart: Sequence[str]) -> None:
        """A signal had the configuration read again; whose it was, the system does not say."""
        self._log.info(
            "configuration read again", caller=_SIGNAL, applied=applied, needs_restart=needs_restart
        )

    def reload_refused(self, problem: str) -> None:
        """The same, and it could not be used."""
        self._log.error(
            "the new configuration is refused, the old one stays", caller=_SIGNAL, problem=problem
        )

    def tokens_changed(self, file: Path, *, added: Sequence[str], removed: Sequence[str]) -> None:
        """A token file was read again."""
        self._log.info("tokens read again", caller=f"file {file}", added=added, removed=removed)

    def tokens_refused(self, file: Path, problem: str) -> None:
        """The same, and it could not be used."""
        self._log.error("tokens kept as they were", caller=f"file {file}", problem=problem)

    def refused(self, *, caller: str, peer: str, method: str, error: LensdError) -> None:
        """A call was not let in. Some are only counted where there are many."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._written = second, 0
        if self._written >= _MAX_REFUSALS_PER_S:
            self._left_out += 1
            return
        self._written += 1
        more = {"left_out_before": self._left_out} if self._left_out else {}
        self._left_out = 0
        self._log.warning(
            "call refused", caller=caller or peer, peer=peer, method=method, reason=error.reason, **more
        )
