"""What Linux says of a process: resident bytes, their peak, threads and open files."""

import os
from pathlib import Path


def peak_bytes(pid: int | None = None) -> int | None:
    """Largest resident size so far (VmHWM), or ``None`` where the system does not tell."""
    return _bytes(pid, "VmHWM")


def resident_bytes(pid: int | None = None) -> int | None:
    """Resident size now (VmRSS), or ``None`` where the system does not tell."""
    return _bytes(pid, "VmRSS")


def threads(pid: int) -> int | None:
    """Threads of a process."""
    return _field(pid, "Threads")


def open_files(pid: int) -> int | None:
    """Files and sockets a process holds open."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


def forget_peak(pid: int | None = None) -> None:
    """Starts counting a process's peak anew from its present size."""
    Path(f"/proc/{pid or 'self'}/clear_refs").write_text("5")


def _bytes(pid: int | None, name: str) -> int | None:
    kib = _field(pid or os.getpid(), name)
    return None if kib is None else kib * 1024


def _field(pid: int, name: str) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(f"{name}:")), None)
