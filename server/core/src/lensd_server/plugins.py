"""The installed plugins: which analyzer answers to what, and who observes."""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import structlog
from packaging.utils import canonicalize_name

from lensd_api.errors import FailedPrecondition, NotFound, UnknownAnalyzer
from lensd_api.hookspecs import AnalysisRecord, ModelSource
from lensd_server.engine.events import RegisteredAnalyzer
from lensd_server.plugin_loading import (
    MAX_PROBLEM,
    LoadedPlugin,
    PluginRecord,
    PluginStatus,
    flatten,
    installed,
    load,
)

__all__ = ["AnalyzerRegistry", "LoadedPlugin", "PluginRecord", "PluginStatus", "discover"]

T = TypeVar("T")

_log = structlog.get_logger("lensd.plugins")


@dataclass(frozen=True, slots=True)
class _Quarantine:
    """Why a plugin is switched off. ``for_good``: until the process ends."""

    problem: str
    for_good: bool


@dataclass(slots=True)
class AnalyzerRegistry:
    """The installed plugins and their analyzers. Built by :func:`discover`; only quarantine changes it.

    ``errors`` counts what plugins' hooks raised, by distribution.
    """

    _loaded: list[LoadedPlugin] = field(default_factory=list[LoadedPlugin])
    _answers: dict[str, RegisteredAnalyzer] = field(default_factory=dict[str, RegisteredAnalyzer])
    errors: dict[str, int] = field(default_factory=dict[str, int])
    _quarantined: dict[str, _Quarantine] = field(default_factory=dict[str, _Quarantine])
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def resolve(self, name: str) -> RegisteredAnalyzer:
        """The analyzer that answers to ``name``, bare or qualified. Raises UnknownAnalyzer."""
        found = self._answers.get(name)
        if found is not None:
            if (quarantine := self._quarantined.get(found.distribution)) is not None:
                raise FailedPrecondition(
                    f"analyzer {name!r} is switched off since its plugin misbehaved: {quarantine.problem}",
                    reason="PLUGIN_QUARANTINED",
                    metadata={"distribution": found.distribution},
                )
            return found
        qualified = sorted(known for known in self._answers if known.endswith(f":{name}"))
        if qualified:
            raise UnknownAnalyzer(
                f"several plugins offer an analyzer {name!r}: ask for one of {', '.join(qualified)}",
                reason="AMBIGUOUS_ANALYZER",
            )
        names = ", ".join(analyzer.name for analyzer in self.analyzers()) or "none is installed"
        raise UnknownAnalyzer(f"no analyzer {name!r}; available: {names}")

    def distribution_of(self, name: str) -> str | None:
        """Whose analyzer answers to ``name``; ``None`` when it is quarantined already, or none does."""
        found = self._answers.get(name)
        return None if found is None or found.distribution in self._quarantined else found.distribution

    def analyzers(self) -> list[RegisteredAnalyzer]:
        """Every analyzer once, by the shortest name it answers to, sorted."""
        shortest: dict[int, RegisteredAnalyzer] = {}
        quarantined = set(self._quarantined)
        working = (r for r in self._answers.values() if r.distribution not in quarantined)
        for registered in sorted(working, key=lambda r: len(r.name)):
            shortest.setdefault(id(registered.analyzer), registered)
        return sorted(shortest.values(), key=lambda r: r.name)

    def plugins(self) -> list[PluginRecord]:
        """Every installed plugin, broken and disabled ones included, sorted."""
        records = (self._as_it_is(loaded.record) for loaded in self._loaded)
        return sorted(records, key=lambda r: (r.distribution, r.name))

    def quarantine(self, distribution: str, problem: str, *, for_good: bool = False) -> None:
        """Switches the analyzers of ``distribution`` off until it is released, or ``for_good`` until the
        process is started anew. The first problem is the one that is told, unless a later one is for good."""
        with self._lock:
            known = self._quarantined.get(distribution)
            if known is None or (for_good and not known.for_good):
                self._quarantined[distribution] = _Quarantine(problem[:MAX_PROBLEM], for_good)
            self.errors[distribution] = self.errors.get(distribution, 0) + 1
        _log.error("plugin quarantined", distribution=distribution, problem=problem)

    def release(self, distribution: str) -> bool:
        """Switches the analyzers of ``distribution`` on again; False when they were not off.

        It may be quarantined again like any other. Raises NotFound, and FailedPrecondition where only a new
        process helps.
        """
        name = self._installed_as(distribution)
        with self._lock:
            quarantine = self._quarantined.get(name)
            if quarantine is None:
                return False
            if quarantine.for_good:
                raise FailedPrecondition(
                    f"plugin {name} cannot be released: {quarantine.problem}; a thread of it hangs, which only the "
                    "end of the process ends: the daemon drains and has to be started anew",
                    reason="PLUGIN_HANGS",
                    metadata={"distribution": name},
                )
            del self._quarantined[name]
        _log.warning("plugin released", distribution=name, problem=quarantine.problem)
        return True

    def _installed_as(self, distribution: str) -> str:
        """The spelling its records have. Raises NotFound."""
        names = sorted({loaded.record.distribution for loaded in self._loaded})
        for name in names:
            if canonicalize_name(name) == canonicalize_name(distribution):
                return name
        raise NotFound(
            f"no distribution {distribution!r} with a plugin is installed; there are {', '.join(names) or 'none'}",
            reason="UNKNOWN_PLUGIN",
        )

    def _as_it_is(self, record: PluginRecord) -> PluginRecord:
        quarantine = self._quarantined.get(record.distribution)
        if quarantine is None or record.status is not PluginStatus.ACTIVE:
            return record
        return replace(record, status=PluginStatus.QUARANTINED, problem=quarantine.problem)

    def model_sources(self) -> dict[str, ModelSource]:
        """Sources of models that plugins add, by URI scheme; the first plugin by name wins."""
        sources: dict[str, ModelSource] = {}
        for loaded, offered in self._ask(lambda hooks: flatten(hooks.lensd_model_sources())):
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
            for loaded, offered in self._ask(lambda hooks: flatten(hooks.lensd_metrics()))
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

    def _ask(self, call: Callable[[Any], T]) -> Iterator[tuple[LoadedPlugin, T]]:
        for loaded in self._loaded:
            if loaded.hooks is None:
                continue
            try:
                answer = call(loaded.hooks)
            except BaseException as error:  # the plugin's own hook, which may even exit
                self._count(loaded, "hook", error)
            else:
                yield loaded, answer

    def count_error(self, distribution: str) -> None:
        """Something that ``distribution`` registered failed."""
        with self._lock:
            self.errors[distribution] = self.errors.get(distribution, 0) + 1

    def _count(self, loaded: LoadedPlugin, hook: str, error: BaseException) -> None:
        distribution = loaded.record.distribution
        self.count_error(distribution)
        _log.error("plugin hook failed", distribution=distribution, hook=hook, exc_info=error)


def discover(allow: Sequence[str] | None = None) -> AnalyzerRegistry:
    """Loads the installed plugins. ``allow`` names the distributions that may be imported."""
    allowed = None if allow is None else {canonicalize_name(name) for name in allow}
    loaded = [load(distribution, entry, allowed) for distribution, entry in installed()]
    return _register(sorted(loaded, key=lambda one: (one.record.distribution, one.record.name)))


def _register(loaded: list[LoadedPlugin]) -> AnalyzerRegistry:
    offers: dict[str, list[LoadedPlugin]] = {}
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
            problem = "; ".join(problems)[:MAX_PROBLEM]
            one.record = replace(one.record, analyzers=tuple(names), problem=problem)
    return AnalyzerRegistry(loaded, answers)
