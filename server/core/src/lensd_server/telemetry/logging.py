"""Structured logs to stderr: for people on a terminal, JSON elsewhere.

Request identifiers are logged, prompts never: tracebacks are printed without local variables.
"""

import logging
import logging.handlers
import os
import sys
from pathlib import Path
from typing import Any, Literal, TextIO

import structlog

from lensd_api.hookspecs import AnalysisRecord
from lensd_server.access.audit import LOGGER as AUDIT_LOGGER


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


def keep_audit(path: Path) -> None:
    """Appends the audit's lines to ``path`` as well, JSON objects, for its owner to read. Raises OSError.

    A file that was moved away, as logrotate does it, is made anew.
    """
    os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
    handler = logging.handlers.WatchedFileHandler(path, encoding="utf-8")
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
