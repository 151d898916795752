"""One analysis while it runs, and how it ended."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import structlog

from lensd_api import (
    AnalysisRecord,
    Cancelled,
    Cost,
    DeadlineExceeded,
    DeviceOutOfMemory,
    Exhausted,
    FailedPrecondition,
    InvalidRequest,
    InvalidResult,
    LensdError,
    NotFound,
    PermissionDenied,
    PluginFailure,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from lensd_server.engine.batching.batcher import Batcher
from lensd_server.engine.batching.ticket import Ticket
from lensd_server.engine.channel import Channel
from lensd_server.engine.device_faults import is_out_of_memory
from lensd_server.engine.events import AnalysisRequest
from lensd_server.engine.faults import plugin_failure

_log = structlog.get_logger("lensd.engine")

#: First match wins, so the special come before the general.
_OUTCOMES: tuple[tuple[type[LensdError], str], ...] = (
    (DeviceOutOfMemory, "device_oom"),
    (TooLarge, "client_error"),
    (Exhausted, "rejected"),
    (Unavailable, "rejected"),
    (Cancelled, "cancelled"),
    (DeadlineExceeded, "deadline"),
    (PluginFailure, "plugin_error"),
    (InvalidResult, "plugin_error"),
    (InvalidRequest, "client_error"),
    (NotFound, "client_error"),
    (FailedPrecondition, "client_error"),
    (PermissionDenied, "client_error"),
    (Unauthenticated, "client_error"),
)

#: Refused for lack of room or time, though not by their class.
_REJECTIONS = ("OVER_BUDGET", "DEADLINE_TOO_SHORT")


@dataclass(slots=True, eq=False)
class Analysis:
    """One request with its ticket and its channel. ``analyzer``,
    ``distribution`` and ``model`` are what it resolved to, ``task`` what runs on the analysis loop."""

    request: AnalysisRequest
    ticket: Ticket
    channel: Channel
    analyzer: str = ""
    distribution: str = ""
    model: str = ""
    task: "asyncio.Task[None] | None" = None
    admitted: bool = False
    #: What it is counted for; nothing until its model can tell.
    cost: Cost = field(default_factory=Cost)
    #: Runs its rows, while it holds a replica of its model.
    batcher: Batcher | None = None
    started: float = field(default_factory=time.monotonic)

    @contextmanager
    def on(self, batcher: Batcher) -> Iterator[None]:
        """While its rows run there."""
        self.batcher = batcher
        try:
            yield
        finally:
            self.batcher = None

    def standing(self) -> tuple[int, int]:
        """How many of its rows wait, and run."""
        batcher = self.batcher
        return (0, 0) if batcher is None else batcher.standing(self.ticket)

    def record(self, outcome: str = "") -> AnalysisRecord:
        """What observers are told."""
        usage = self.ticket.usage
        return AnalysisRecord(
            request_id=self.request.request_id,
            analyzer=self.analyzer,
            model=self.model,
            outcome=outcome,
            seconds=time.monotonic() - self.started,
            usage={
                "queue_s": usage.queue_s,
                "forward_s": usage.forward_s,
                "compute_s": usage.compute_s,
                "rows": usage.rows,
                "tokens": usage.tokens,
                "shared_rows": usage.shared_rows,
                "peak_capture_bytes": usage.peak_capture_bytes,
                "largest_batch": usage.largest_batch,
            },
            caller=self.request.caller,
        )

    def settle_usage(self) -> None:
        """Completes the usage: what was neither waiting nor a forward was the analyzer's own."""
        usage = self.ticket.usage
        usage.total_s = time.monotonic() - self.started
        usage.compute_s = max(0.0, usage.total_s - usage.queue_s - usage.forward_s)

    @contextmanager
    def foreign(self) -> Iterator[None]:
        """Around the analyzer's own code: what it raises becomes an error a caller may see."""
        try:
            yield
        except InvalidResult as error:
            # Its author has no other way to learn of it.
            _log.error("analyzer failed", request_id=self.request.request_id, problem=error.message)
            raise
        except LensdError:
            raise
        except BaseException as error:  # whatever a plugin raises, SystemExit included
            # A cancelled analyzer may fail in any way on its way out; that is no fault of it.
            if (ended := self.ticket.error()) is not None:
                raise ended from error
            if is_out_of_memory(error):
                raise DeviceOutOfMemory(
                    f"analyzer {self.analyzer} ran out of memory; ask for less at once"
                ) from error
            raise plugin_failure(error, analyzer=self.analyzer, request_id=self.request.request_id) from error


def outcome_of(error: LensdError | None) -> str:
    """The label by which an analysis is counted."""
    if error is None:
        return "ok"
    if error.reason in _REJECTIONS:
        return "rejected"
    return next((label for kind, label in _OUTCOMES if isinstance(error, kind)), "internal")


def is_rejection(error: LensdError) -> bool:
    """Whether it was refused or broken off for lack of room or time."""
    return error.status in ("RESOURCE_EXHAUSTED", "UNAVAILABLE") or error.reason in _REJECTIONS
