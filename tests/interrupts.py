"""Ctrl-C for programs that a test starts."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def heeded_by_children() -> Iterator[None]:
    """Programs started inside react to SIGINT, even where the tests themselves run in the background.

    A shell starts what it puts there with SIGINT ignored, and so would be whatever that starts in turn; a
    handler is not inherited, but set back to the default.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
