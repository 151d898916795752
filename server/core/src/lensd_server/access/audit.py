"""Who did what to the server, and who was not let in: lines for a person who asks afterwards.

Nothing here is a token or a prompt. The lines go to the logger ``lensd.audit`` at any log level,
and to ``auth.audit_file`` where that is set.
"""

import time
from collections.abc import Callable

import structlog

from lensd_api.errors import LensdError

LOGGER = "lensd.audit"
#: Refusals written in one second; a flood of them must not fill the disk.
_MAX_REFUSALS_PER_S = 20


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
