"""Turns exceptions of foreign code into errors a caller may see.

Their text never reaches a caller, only a random identifier does; the log holds the rest.
"""

import secrets
import traceback

import structlog

from lensd_api import Internal, PluginFailure

_log = structlog.get_logger("lensd.engine")


def let_go(error: BaseException) -> None:
    """Forgets what the frames of ``error`` and of what led to it hold: the very tensors of a forward, and often in
    a cycle, so that they would stay on the device until Python looks for those."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        traceback.clear_frames(link.__traceback__)
        link = link.__cause__ or link.__context__


def plugin_failure(error: BaseException, *, analyzer: str, request_id: str = "") -> PluginFailure:
    """For what an analyzer's own code raised."""
    failure = PluginFailure(analyzer=analyzer, error_id=secrets.token_hex(8))
    failure.__cause__ = error
    _log.error(
        "analyzer failed",
        analyzer=analyzer,
        request_id=request_id,
        error_id=failure.error_id,
        exc_info=error,
    )
    return failure


def internal_failure(error: BaseException, doing: str, *, request_id: str = "") -> Internal:
    """For what the model's code or ours raised while ``doing`` something."""
    error_id = secrets.token_hex(8)
    failure = Internal(
        f"{doing} failed; give the operator error id {error_id}", metadata={"error_id": error_id}
    )
    failure.__cause__ = error
    _log.error("engine failed", doing=doing, request_id=request_id, error_id=error_id, exc_info=error)
    return failure
