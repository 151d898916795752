"""Loads installed plugins one by one, so that whatever one of them does, the others go on.

Each gets a plugin manager of its own. pluggy's own loader would let one broken entry point take
the host down.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from importlib import metadata
from typing import Any, cast

import pluggy
import structlog
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from lensd_api import __version__ as api_version
from lensd_api import hookspecs
from lensd_api.analyzer import Analyzer, find_flaw
from lensd_api.hookspecs import PROJECT

_log = structlog.get_logger("lensd.plugins")
_API = canonicalize_name("lensd-api")
#: Of a problem text; a plugin's exception may hold anything.
MAX_PROBLEM = 500


class PluginStatus(StrEnum):
    """What became of an installed plugin."""

    ACTIVE = "active"
    BROKEN = "broken"
    DISABLED = "disabled"
    QUARANTINED = "quarantined"


@dataclass(frozen=True, slots=True)
class PluginRecord:
    """An installed plugin as an operator sees it. ``analyzers`` are the names it answers to."""

    name: str
    distribution: str
    version: str
    status: PluginStatus
    problem: str = ""
    analyzers: tuple[str, ...] = ()


class PluginFlaw(Exception):
    """Why a plugin cannot be used, in a sentence for the operator."""


@dataclass(slots=True)
class LoadedPlugin:
    """A plugin with what it registered; nothing of a broken or disabled one."""

    record: PluginRecord
    hooks: pluggy.HookRelay | None = None
    analyzers: tuple[Analyzer, ...] = ()


def installed() -> Iterator[tuple[metadata.Distribution, "metadata.EntryPoint | PluginFlaw"]]:
    """Entry points of group ``lensd``, of every distribution on the path."""
    seen: set[str] = set()
    for distribution in metadata.distributions():
        try:
            name = canonicalize_name(distribution.metadata["Name"])
        except Exception:  # a folder that only looks like an installed distribution
            continue
        if name in seen:
            continue
        # As Python does it, the first on the path hides those behind it.
        seen.add(name)
        try:
            entries = list(distribution.entry_points)
        except Exception as error:  # somebody's malformed metadata
            if f"[{PROJECT}]" in (distribution.read_text("entry_points.txt") or ""):
                yield distribution, PluginFlaw(f"its entry_points.txt cannot be read: {_summary(error)}")
            continue
        yield from ((distribution, entry) for entry in entries if entry.group == PROJECT)


def load(
    distribution: metadata.Distribution,
    entry: metadata.EntryPoint | PluginFlaw,
    allowed: set[Any] | None,
) -> LoadedPlugin:
    """Imports one plugin and asks what it offers, unless it may not be. Never fails."""
    record = PluginRecord(
        name="" if isinstance(entry, PluginFlaw) else entry.name,
        distribution=distribution.metadata["Name"],
        version=distribution.metadata["Version"] or "",
        status=PluginStatus.ACTIVE,
    )
    if allowed is not None and canonicalize_name(record.distribution) not in allowed:
        problem = "not in the configuration's allow-list ([plugins] allow)"
        return LoadedPlugin(replace(record, status=PluginStatus.DISABLED, problem=problem))
    try:
        if isinstance(entry, PluginFlaw):
            raise entry
        _check_api_version(distribution.requires or ())
        manager = _manage(_imported(entry))
        analyzers = _offered(manager.hook)
        return LoadedPlugin(record, manager.hook, analyzers)
    except PluginFlaw as flaw:
        problem = str(flaw)[:MAX_PROBLEM]
        _log.warning(
            "plugin is broken", plugin=record.name, distribution=record.distribution, problem=problem
        )
        return LoadedPlugin(replace(record, status=PluginStatus.BROKEN, problem=problem))


def _check_api_version(requires: Iterable[str]) -> None:
    for line in requires:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        if canonicalize_name(requirement.name) != _API or (
            requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        ):
            continue
        if not requirement.specifier.contains(api_version, prereleases=True):
            raise PluginFlaw(
                f"it requires lensd-api{requirement.specifier}, but {api_version} is installed: "
                "install a version of the plugin that was made for this one"
            )


def _imported(entry: metadata.EntryPoint) -> object:
    try:
        return entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the plugin's code, which may even call sys.exit
        raise PluginFlaw(f"importing {entry.value} failed: {_summary(error)}") from error


def _manage(plugin: object) -> pluggy.PluginManager:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    try:
        manager.register(plugin)
        manager.check_pending()
    except Exception as error:  # pluggy's verdict on the plugin, or the plugin's attributes
        raise PluginFlaw(f"its hooks are wrong: {_summary(error)}") from error
    if not manager.get_hookcallers(plugin):
        raise PluginFlaw("it implements no hook: decorate at least lensd_analyzers with lensd_api.hookimpl")
    return manager


def _offered(hooks: Any) -> tuple[Analyzer, ...]:
    try:
        answers = hooks.lensd_analyzers()
        analyzers = tuple(flatten(answers))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the plugin's code
        raise PluginFlaw(f"lensd_analyzers failed: {_summary(error)}") from error
    for analyzer in analyzers:
        flaw = find_flaw(analyzer)
        if flaw is not None:
            raise PluginFlaw(flaw.problem)
        _check_described(analyzer)
    names = [analyzer.name for analyzer in analyzers]
    if len(set(names)) < len(names):
        raise PluginFlaw(f"it offers one analyzer name twice: {', '.join(sorted(names))}")
    return analyzers


def _check_described(analyzer: Analyzer) -> None:
    """What callers are shown of it must be there before a caller asks."""
    try:
        analyzer.Params.model_json_schema()
        analyzer.requirements(None)
    except Exception as error:  # the plugin's code
        raise PluginFlaw(f"analyzer {analyzer.name} cannot be described: {_summary(error)}") from error


def flatten(answers: Any) -> list[Any]:
    """The hooks' answers as one list; an answer that is no sequence is one flaw."""
    flat: list[Any] = []
    for answer in cast("list[object]", answers):
        if isinstance(answer, str | bytes | Mapping) or not isinstance(answer, Iterable):
            raise TypeError(f"a hook returned a {type(answer).__name__}, not a list")
        flat.extend(cast("Iterable[Any]", answer))
    return flat


def _summary(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
