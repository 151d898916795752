"""Finds plugins, keeps broken ones from doing harm, and knows which analyzer answers to what.

Entry points of group ``lensd`` are loaded one by one, each into a plugin manager of its own:
whatever one of them does while it is imported or asked, the others and the server go on.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib import metadata
from typing import Any, TypeVar, cast

import pluggy
import structlog
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import canonicalize_name

from lensd_api import __version__ as api_version
from lensd_api import hookspecs
from lensd_api.analyzer import Analyzer, find_flaw
from lensd_api.errors import UnknownAnalyzer
from lensd_api.hookspecs import PROJECT, AnalysisRecord, ModelSource
from lensd_server.engine.events import RegisteredAnalyzer

T = TypeVar("T")

_log = structlog.get_logger("lensd.plugins")
_API = canonicalize_name("lensd-api")
#: Of a problem text; a plugin's exception may hold anything.
_MAX_PROBLEM = 500


class PluginStatus(StrEnum):
    """What became of an installed plugin."""

    ACTIVE = "active"
    BROKEN = "broken"
    DISABLED = "disabled"


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
class _Loaded:
    record: PluginRecord
    hooks: pluggy.HookRelay | None = None
    analyzers: tuple[Analyzer, ...] = ()


@dataclass(slots=True)
class AnalyzerRegistry:
    """The installed plugins and their analyzers. Built by :func:`discover`, then read only.

    ``errors`` counts what plugins' hooks raised, by distribution.
    """

    _loaded: list[_Loaded] = field(default_factory=list[_Loaded])
    _answers: dict[str, RegisteredAnalyzer] = field(default_factory=dict[str, RegisteredAnalyzer])
    errors: dict[str, int] = field(default_factory=dict[str, int])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def resolve(self, name: str) -> RegisteredAnalyzer:
        """The analyzer that answers to ``name``, bare or qualified. Raises UnknownAnalyzer."""
        found = self._answers.get(name)
        if found is not None:
            return found
        qualified = sorted(known for known in self._answers if known.endswith(f":{name}"))
        if qualified:
            raise UnknownAnalyzer(
                f"several plugins offer an analyzer {name!r}: ask for one of {', '.join(qualified)}",
                reason="AMBIGUOUS_ANALYZER",
            )
        names = ", ".join(analyzer.name for analyzer in self.analyzers()) or "none is installed"
        raise UnknownAnalyzer(f"no analyzer {name!r}; available: {names}")

    def analyzers(self) -> list[RegisteredAnalyzer]:
        """Every analyzer once, by the shortest name it answers to, sorted."""
        shortest: dict[int, RegisteredAnalyzer] = {}
        for registered in sorted(self._answers.values(), key=lambda r: len(r.name)):
            shortest.setdefault(id(registered.analyzer), registered)
        return sorted(shortest.values(), key=lambda r: r.name)

    def plugins(self) -> list[PluginRecord]:
        """Every installed plugin, broken and disabled ones included, sorted."""
        records = (loaded.record for loaded in self._loaded)
        return sorted(records, key=lambda r: (r.distribution, r.name))

    def model_sources(self) -> dict[str, ModelSource]:
        """Sources of models that plugins add, by URI scheme; the first plugin by name wins."""
        sources: dict[str, ModelSource] = {}
        for loaded, offered in self._ask(lambda hooks: _flatten(hooks.lensd_model_sources())):
            for source in offered:
                try:
                    sources.setdefault(str(source.scheme), cast("ModelSource", source))
                except Exception as error:  # the plugin's own property
                    self._count(loaded, "lensd_model_sources", error)
        return sources

    def metrics_collectors(self) -> list[tuple[str, Any]]:
        """Prometheus collectors that plugins add, each with its distribution."""
        return [
            (loaded.record.distribution, collector)
            for loaded, offered in self._ask(lambda hooks: _flatten(hooks.lensd_metrics()))
            for collector in offered
        ]

    def started(self, analysis: AnalysisRecord) -> None:
        """Tells the plugins that an analysis was admitted."""
        self._tell(lambda hooks: hooks.lensd_analysis_started(analysis=analysis))

    def finished(self, analysis: AnalysisRecord) -> None:
        """Tells the plugins that an analysis ended."""
        self._tell(lambda hooks: hooks.lensd_analysis_finished(analysis=analysis))

    def _tell(self, call: Callable[[Any], Any]) -> None:
        for _ in self._ask(call):
            pass

    def _ask(self, call: Callable[[Any], T]) -> Iterator[tuple[_Loaded, T]]:
        for loaded in self._loaded:
            if loaded.hooks is None:
                continue
            try:
                answer = call(loaded.hooks)
            except Exception as error:  # the plugin's own hook
                self._count(loaded, "hook", error)
            else:
                yield loaded, answer

    def _count(self, loaded: _Loaded, hook: str, error: Exception) -> None:
        distribution = loaded.record.distribution
        with self._lock:
            self.errors[distribution] = self.errors.get(distribution, 0) + 1
        _log.error("plugin hook failed", distribution=distribution, hook=hook, exc_info=error)


def discover(allow: Sequence[str] | None = None) -> AnalyzerRegistry:
    """Loads the installed plugins. ``allow`` names the distributions that may be imported."""
    allowed = None if allow is None else {canonicalize_name(name) for name in allow}
    loaded = [_load(distribution, entry, allowed) for distribution, entry in _entry_points()]
    return _register(sorted(loaded, key=lambda one: (one.record.distribution, one.record.name)))


def _entry_points() -> Iterator[tuple[metadata.Distribution, metadata.EntryPoint | PluginFlaw]]:
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


def _load(
    distribution: metadata.Distribution,
    entry: metadata.EntryPoint | PluginFlaw,
    allowed: set[Any] | None,
) -> _Loaded:
    record = PluginRecord(
        name="" if isinstance(entry, PluginFlaw) else entry.name,
        distribution=distribution.metadata["Name"],
        version=distribution.metadata["Version"] or "",
        status=PluginStatus.ACTIVE,
    )
    if allowed is not None and canonicalize_name(record.distribution) not in allowed:
        problem = "not in the configuration's allow-list ([plugins] allow)"
        return _Loaded(replace(record, status=PluginStatus.DISABLED, problem=problem))
    try:
        if isinstance(entry, PluginFlaw):
            raise entry
        _check_api_version(distribution.requires or ())
        manager = _manage(_imported(entry))
        analyzers = _offered(manager.hook)
        return _Loaded(record, manager.hook, analyzers)
    except PluginFlaw as flaw:
        problem = str(flaw)[:_MAX_PROBLEM]
        _log.warning(
            "plugin is broken", plugin=record.name, distribution=record.distribution, problem=problem
        )
        return _Loaded(replace(record, status=PluginStatus.BROKEN, problem=problem))


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
        analyzers = tuple(_flatten(answers))
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


def _register(loaded: list[_Loaded]) -> AnalyzerRegistry:
    offers: dict[str, list[_Loaded]] = {}
    for one in loaded:
        for analyzer in one.analyzers:
            offers.setdefault(analyzer.name, []).append(one)
    answers: dict[str, RegisteredAnalyzer] = {}
    for one in loaded:
        names: list[str] = []
        problems: list[str] = []
        for analyzer in one.analyzers:
            origin = (one.record.distribution, one.record.version)
            qualified = f"{one.record.distribution}:{analyzer.name}"
            if qualified in answers:
                problems.append(f"{qualified} is offered by another entry point of it already")
                continue
            answers[qualified] = RegisteredAnalyzer(analyzer, qualified, *origin)
            rivals = [rival.record.distribution for rival in offers[analyzer.name] if rival is not one]
            if rivals:
                names.append(qualified)
                problems.append(
                    f"analyzer {analyzer.name} is also offered by {', '.join(rivals)}: "
                    f"it answers to {qualified} only"
                )
            else:
                answers[analyzer.name] = RegisteredAnalyzer(analyzer, analyzer.name, *origin)
                names.append(analyzer.name)
        if one.record.status is PluginStatus.ACTIVE:
            problem = "; ".join(problems)[:_MAX_PROBLEM]
            one.record = replace(one.record, analyzers=tuple(names), problem=problem)
    return AnalyzerRegistry(loaded, answers)


def _flatten(answers: Any) -> list[Any]:
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
