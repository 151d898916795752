"""The machine: Python, libraries, accelerators, cores, descriptors and the clock."""

import os
import resource
import shlex
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.version import Version

from lensd_server.doctor.finding import Finding, Verdict
from lensd_server.settings import Settings

_MIN_PYTHON = (3, 11)
_MIN_VERSIONS = {"torch": Version("2.6"), "transformers": Version("5.10")}
#: Descriptors for libraries, files and the listeners themselves.
_OWN_DESCRIPTORS = 128

#: There where the driver of an NVIDIA GPU is.
NVIDIA = Path("/dev/nvidia0")


def examine_machine(settings: Settings) -> Iterator[Finding]:
    """What does not depend on the configuration, or hardly."""
    yield _python()
    yield _library("torch")
    yield _cuda()
    yield _library("transformers")
    yield _cores()
    yield _products()
    yield _descriptors(settings)
    yield _clock()


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < _MIN_PYTHON:
        return Finding("Python", Verdict.BROKEN, version, "install Python 3.11 or newer")
    return Finding("Python", Verdict.FINE, version)


def _library(name: str) -> Finding:
    minimum = _MIN_VERSIONS[name]
    command = (sys.executable, "-m", "pip", "install", f"{name}>={minimum}")
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return Finding(name, Verdict.BROKEN, "not installed", shlex.join(command), command)
    if Version(version) < minimum:
        text = f"{version} is older than {minimum}"
        return Finding(name, Verdict.BROKEN, text, shlex.join(command), command)
    return Finding(name, Verdict.FINE, version)


def _cuda() -> Finding:
    try:
        import torch

        if torch.cuda.is_available():
            names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
            return Finding("CUDA", Verdict.FINE, names)
    except Exception as error:  # a torch that does not fit this machine raises all kinds of things
        return Finding(
            "CUDA",
            Verdict.BROKEN,
            f"torch cannot be used: {type(error).__name__}: {error}",
            "install a torch build that fits this machine: https://pytorch.org/get-started",
        )
    if NVIDIA.exists():
        wanted = (
            "was built without CUDA" if torch.version.cuda is None else f"needs CUDA {torch.version.cuda}"
        )
        return Finding(
            "CUDA",
            Verdict.NOTE,
            f"there is an NVIDIA device, but torch {torch.__version__} cannot use it and {wanted}: models run on "
            "the CPU",
            "install a torch build that fits this machine's driver: https://pytorch.org/get-started",
        )
    return Finding("CUDA", Verdict.NOTE, "no CUDA device: models run on the CPU")


def _cores() -> Finding:
    what = "CPU cores"
    try:
        from lensd_server.engine.device import usable_cores

        usable = usable_cores()
    except ImportError:  # torch is reported by itself
        return Finding(what, Verdict.NOTE, f"{os.cpu_count()}")
    there = os.cpu_count() or usable
    text = f"{usable} of {there} may be used" if usable < there else f"{usable}"
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > usable:
        return Finding(
            what,
            Verdict.NOTE,
            f"{text}, and OMP_NUM_THREADS asks for {asked} threads: they would wait for each other",
            "unset OMP_NUM_THREADS; the daemon sets its own number",
        )
    return Finding(what, Verdict.FINE, text)


def _products() -> Finding:
    what = "float32 on the CPU"
    try:
        import torch

        from lensd_server.engine.models.products import least_rows, one_dnn

        quicker = least_rows(one_dnn, torch.ones((1024, 1024)), None) is not None
    except Exception:  # torch is reported by itself
        return Finding(what, Verdict.NOTE, "not tried")
    if quicker:
        return Finding(what, Verdict.FINE, "oneDNN multiplies, here quicker than what torch uses by itself")
    return Finding(what, Verdict.FINE, "multiplied by what torch uses by itself; oneDNN is not quicker here")


def _descriptors(settings: Settings) -> Finding:
    what = "file descriptors"
    # One a connection, and a caller may open one for every analysis, another for probing.
    wanted = 2 * settings.limits.max_analyses + _OWN_DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        return Finding(
            what,
            Verdict.BROKEN if soft <= _OWN_DESCRIPTORS else Verdict.NOTE,
            f"{soft} may be open at once; limits.max_analyses = {settings.limits.max_analyses} may take {wanted}",
            f"`ulimit -n {wanted}`, or LimitNOFILE={wanted} in the systemd unit"
            + ("" if hard == resource.RLIM_INFINITY or hard >= wanted else f" (the hard limit is {hard})"),
        )
    return Finding(what, Verdict.FINE, "unlimited" if soft == resource.RLIM_INFINITY else f"{soft}")


def _clock() -> Finding:
    """Certificates and the dates of artifacts need it; deadlines do not, they are monotonic."""
    installed = Path(__file__).stat().st_mtime
    now = time.time()
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < installed - 86400:
        return Finding(
            "clock",
            Verdict.BROKEN,
            f"{text} is before lensd was installed: certificates will seem not to be valid yet",
            "set the clock, or start time synchronisation",
        )
    return Finding("clock", Verdict.FINE, text)
