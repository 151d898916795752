"""Looks at this machine and says, for each thing that is wrong, how to mend it."""

import subprocess
from collections.abc import Callable, Iterator

from lensd_server.doctor.finding import Finding, Verdict
from lensd_server.doctor.machine import examine_machine
from lensd_server.doctor.models import INSTALL_EMBEDDED, examine_models
from lensd_server.doctor.places import examine_places
from lensd_server.doctor.protection import examine_protection
from lensd_server.doctor.room import examine_room
from lensd_server.doctor.store import examine_store
from lensd_server.plugins import AnalyzerRegistry, PluginStatus, discover
from lensd_server.settings import Settings

__all__ = ["INSTALL_EMBEDDED", "Finding", "Verdict", "examine", "mend"]


def examine(settings: Settings) -> Iterator[Finding]:
    """Everything ``lensd serve`` needs under ``settings``, one finding a thing."""
    registry = discover(settings.plugins.allow)
    yield from examine_machine(settings)
    yield from examine_models(settings, registry.model_sources())
    yield from examine_room(settings)
    yield from examine_places(settings)
    yield from examine_store(settings)
    yield from examine_protection(settings)
    yield from _plugins(registry)


def mend(findings: list[Finding], run: Callable[[tuple[str, ...]], int] | None = None) -> bool:
    """Runs the command of every broken finding that has one. False when one of them fails."""
    run = run or (lambda command: subprocess.run(command, check=False).returncode)
    commands = [f.command for f in findings if f.verdict is Verdict.BROKEN and f.command]
    return all([run(command) == 0 for command in commands])


def _plugins(registry: AnalyzerRegistry) -> Iterator[Finding]:
    records = registry.plugins()
    if not records:
        mend = "`pip install .` in a checkout of lensd brings the first-party ones"
        yield Finding("plugins", Verdict.NOTE, "none is installed", mend)
    for record in records:
        what = f"plugin {record.distribution} {record.version}"
        if record.status is PluginStatus.BROKEN:
            yield Finding(
                what, Verdict.BROKEN, record.problem, f"install a working version of {record.distribution}"
            )
        elif record.problem:
            yield Finding(what, Verdict.NOTE, record.problem)
        else:
            yield Finding(what, Verdict.FINE, ", ".join(record.analyzers))
