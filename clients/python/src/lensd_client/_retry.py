"""When a refused call is tried again: the policy of ``SERVICE_CONFIG``, carried out by this client.

gRPC could do it by itself, but a call whose retry waits while the connection closes never ends then
(1.85; a server killed under overload is enough). Invariant: every attempt ends, and so does the call.
"""

import random
import time
from collections.abc import Callable
from typing import Any

from lensd_client._status import is_broken_off, pushback
from lensd_client.channels import SERVICE_CONFIG

_POLICY: dict[str, Any] = SERVICE_CONFIG["methodConfig"][0]["retryPolicy"]
_CODES = frozenset(_POLICY["retryableStatusCodes"])
_FIRST_S, _LONGEST_S = (float(_POLICY[key].removesuffix("s")) for key in ("initialBackoff", "maxBackoff"))
#: Share by which a pause is longer or shorter, so that clients refused together do not come back together.
_JITTER = 0.2
#: Of a deadline that has passed: the call is made all the same, and fails as one.
_LEAST_S = 0.001


class Attempts:
    """The attempts of one call, which share its deadline."""

    def __init__(self, timeout_s: float | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = None if timeout_s is None else clock() + timeout_s
        self._refused = 0
        self._is_committed = False

    def left_s(self) -> float | None:
        """What is left of the deadline for the next attempt; None without one."""
        return None if self._until is None else max(_LEAST_S, self._until - self._clock())

    def commit(self) -> None:
        """A message has come: from now on nothing is tried again."""
        self._is_committed = True

    def pause_s(self, error: Any) -> float | None:
        """Seconds to wait before the next attempt after ``error``; None when there is to be none.

        The server's own word decides when. A pause that would outlast the deadline is not begun:
        the caller learns of the refusal instead.
        """
        self._refused += 1
        if self._is_committed or self._refused >= _POLICY["maxAttempts"]:
            return None
        if error.code().name not in _CODES and not _hides_the_refusal(error) and not is_broken_off(error):
            return None
        told = pushback(error)
        if told is not None and told < 0:
            return None
        backoff = min(_LONGEST_S, _FIRST_S * _POLICY["backoffMultiplier"] ** (self._refused - 1))
        pause = backoff * random.uniform(1 - _JITTER, 1 + _JITTER) if told is None else told
        left = self.left_s()
        return None if left is not None and pause >= left else pause


def _hides_the_refusal(error: Any) -> bool:
    """Whether grpc.aio lost the status: so it does when a stream is refused while it is being written to."""
    return error.code().name == "INTERNAL" and error.details() == "Internal error from Core"
