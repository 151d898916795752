"""Leaves out an optional dependency of what is imported, which a start would otherwise wait for."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def absent(package: str) -> Iterator[None]:
    """Whoever asks for ``package`` within is told that it is not installed; afterwards it can be imported.

    Does nothing where it has been imported already.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # pyright: ignore[reportArgumentType]  # documented: import then fails
    try:
        yield
    finally:
        sys.modules.pop(package, None)
