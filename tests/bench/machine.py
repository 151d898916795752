"""Where and with what a benchmark ran: nothing measured means anything without it."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

from lensd_server.engine.device import usable_cores

_DISTRIBUTIONS = ("lensd-server", "torch", "transformers", "grpcio")


def describe_machine() -> str:
    """Processor, cores, memory, device, versions and commit, on one line."""
    parts = [
        f"{_processor()}, {usable_cores()} cores, {_memory_gib()} GiB",
        *(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())),
        f"{platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
        *(f"{name} {version(name)}" for name in _DISTRIBUTIONS),
    ]
    if commit := _commit():
        parts.append(f"commit {commit}")
    return ", ".join(parts)


def busy_with_others() -> float:
    """Processes that wanted a core in the last minute, on average; what runs before a benchmark
    starts is not its own."""
    return os.getloadavg()[0]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def _memory_gib() -> int:
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3)


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
