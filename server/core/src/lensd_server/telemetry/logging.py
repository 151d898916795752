"""Structured logs to stderr: for people on a terminal, JSON elsewhere.

Request identifiers are logged, prompts never: tracebacks are printed without local variables.
"""

import logging
import logging.handlers
import math
import os
import sys
import time
from collections.abc import Callable
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Literal, TextIO

import structlog

from lensd_api.hookspecs import AnalysisRecord
from lensd_server.access.audit import LOGGER as AUDIT_LOGGER

#: How often the log says that the audit cannot be written, while that lasts.
_REMIND_S = 60.0


def configure_logging(
    *,
    log_format: Literal["auto", "console", "json"] = "auto",
    level: str = "info",
    stream: TextIO | None = None,
) -> None:
    """Sets up structlog and the standard library's logging alike, process-wide."""
    out: TextIO = sys.stderr if stream is None else stream
    console = log_format == "console" or (log_format == "auto" and out.isatty())
    shared = _shared()
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    final: list[Any] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if console:
        final.append(
            structlog.dev.ConsoleRenderer(
                colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        )
    else:
        final += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    handler = logging.StreamHandler(out)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for own in ("transformers", "huggingface_hub"):  # they print in a format of their own
        library = logging.getLogger(own)
        library.handlers[:] = []
        library.propagate = True
    # What operators did is written at any level.
    logging.getLogger(AUDIT_LOGGER).setLevel(logging.INFO)
    # They report each request or file they touch.
    for chatty in ("httpx", "httpcore", "urllib3", "filelock", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


def _shared() -> list[Any]:
    return [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]


class AuditFile(logging.handlers.WatchedFileHandler):
    """A file of the audit that may be moved away, or become impossible to write, while the daemon serves.

    What cannot be written fails no call: ``when_lost`` is called for each line, the log says it once a
    minute, and the next line tries again.
    """

    def __init__(
        self, path: Path, when_lost: Callable[[], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Raises OSError."""
        super().__init__(path, encoding="utf-8")
        self._when_lost, self._clock = when_lost, clock
        self._lost = 0
        self._quiet_until = -math.inf
        self._log = structlog.get_logger("lensd.logging")

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one line, or counts it as lost."""
        lost = self._lost
        try:
            super().emit(record)
        except OSError:  # of opening the file anew, which logging does not guard
            self.handleError(record)
        if lost and lost == self._lost:
            self._lost, self._quiet_until = 0, -math.inf
            self._log.warning("the audit is written again", path=self.baseFilename, lost=lost)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (inherited)
        """Of an error that is being handled."""
        self._lost += 1
        self._when_lost()
        now = self._clock()
        if now < self._quiet_until:
            return
        self._quiet_until = now + _REMIND_S
        self._log.error(
            "the audit cannot be written",
            path=self.baseFilename,
            problem=repr(sys.exception()),
            lost=self._lost,
        )

    def _open(self) -> TextIOWrapper:
        # Whoever made the file, what we make is for its owner alone.
        return open(self.baseFilename, "a", encoding=self.encoding, opener=_for_the_owner)


def _for_the_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def keep_audit(path: Path, when_lost: Callable[[], None] = lambda: None) -> None:
    """Appends the audit's lines to ``path`` as well, JSON objects, for its owner to read. Raises OSError.

    A file that was moved away, as logrotate does it, is made anew. ``when_lost`` is called for each line
    that cannot be written later on.
    """
    handler = AuditFile(path, when_lost)
    final = [structlog.stdlib.ProcessorFormatter.remove_processors_meta, structlog.processors.JSONRenderer()]
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=_shared(), processors=final))
    logging.getLogger(AUDIT_LOGGER).addHandler(handler)


def set_log_level(level: str) -> None:
    """Logs from ``level`` up from now on."""
    logging.getLogger().setLevel(level.upper())


class AnalysisLog:
    """Writes one line for each analysis that ended: which, how, and what it took."""

    def __init__(self) -> None:
        self._log = structlog.get_logger("lensd.analyses")

    def started(self, analysis: AnalysisRecord) -> None:
        """Not worth a line."""

    def finished(self, analysis: AnalysisRecord) -> None:
        """Identifiers, outcome and numbers; nothing of what was asked."""
        self._log.info(
            "analysis finished",
            request_id=analysis.request_id,
            analyzer=analysis.analyzer,
            model=analysis.model,
            caller=analysis.caller,
            outcome=analysis.outcome,
            seconds=round(analysis.seconds, 4),
            **{key: round(value, 4) for key, value in (analysis.usage or {}).items()},
        )
