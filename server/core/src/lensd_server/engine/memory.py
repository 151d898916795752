"""What the operating system says about this machine's memory and this process's share of it.

A container's limit counts: the machine may have more than this process will ever get.
"""

import ctypes
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_PROC = Path("/proc")


def available_bytes(proc: Path = _PROC, cgroup: Path = _CGROUP) -> int | None:
    """Bytes that could be allocated without swapping; ``None`` where nobody says."""
    known = [bound for bound in (_machine(proc), _container(cgroup)) if bound is not None]
    return min(known) if known else None


def process_bytes(proc: Path = _PROC) -> int:
    """Bytes of this process in memory, mapped files included; 0 where nobody says."""
    try:
        pages = int((proc / "self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _machine(proc: Path) -> int | None:
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", (proc / "meminfo").read_text(encoding="ascii"), re.M)
    except OSError:
        return None
    return int(found[1]) * 1024 if found else None


def _container(cgroup: Path) -> int | None:
    """What is left of the control group's limit; its file cache can be given up."""
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        found = re.search(
            r"^inactive_file (\d+)$", (cgroup / "memory.stat").read_text(encoding="ascii"), re.M
        )
    except (OSError, ValueError):
        return None
    return max(0, int(limit) - used + (int(found[1]) if found else 0))


def trim() -> None:
    """Gives the system back what the C library keeps of memory that is free; glibc only does so by halves."""
    if (give_back := _malloc_trim()) is not None:
        give_back(0)


@cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):  # another C library
        return None
