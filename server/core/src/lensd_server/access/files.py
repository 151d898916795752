"""Whether a file is the one that was read last."""

from pathlib import Path


def version_of(path: Path) -> tuple[int, ...]:
    """Differs from the one before when the file was replaced or written; empty when it is not there.

    Take it before reading: what is written meanwhile is then seen the next time.
    """
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_ino, found.st_mtime_ns, found.st_size)
