"""The class an analyzer author subclasses."""

import inspect
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from lensd_api.anatomy import Unit
from lensd_api.model import ModelCard
from lensd_api.params import BaseParams
from lensd_api.results import Result


@dataclass(frozen=True, slots=True)
class Requirements:
    """What an analysis asks for: a model or none, and units every layer of it must offer."""

    model: bool = True
    units: frozenset[Unit] = frozenset()


@dataclass(frozen=True, slots=True)
class Cost:
    """What an analysis is expected to take, for admission. Over is safe, under is not."""

    tokens: int = 0
    bytes: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Example:
    """Parameters that run as they are; ``after`` names examples that must have run before."""

    name: str
    shows: str
    params: Mapping[str, Any]
    after: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ResultSpec:
    """Declares a result: its name, its kind and what it holds."""

    name: str
    kind: Literal["table", "tensor", "graph", "record", "text"]
    description: str


class Analyzer(ABC):
    """One analysis that callers can ask for by ``name``.

    Subclasses set ``name`` (lower-case, digits and dashes), nest a ``Params`` class and write
    ``analyze``: an async generator, or a plain generator, which the server then runs on a
    worker thread. The class docstring's first line is the summary callers see. Instances are
    shared by concurrent requests: keep state in locals.
    """

    name: ClassVar[str]
    #: Name and version of the distribution are found by the server.
    Params: ClassVar[type[BaseParams]] = BaseParams
    results: ClassVar[tuple[ResultSpec, ...]] = ()
    examples: ClassVar[tuple[Example, ...]] = ()

    @abstractmethod
    def analyze(self, params: Any, ctx: Any) -> AsyncIterator[Result] | Iterator[Result]:
        """Yields results as they are found.

        ``params`` is an instance of ``Params``, ``ctx`` a :class:`lensd_api.Context` (async) or
        :class:`lensd_api.BlockingContext` (plain). The server closes the generator when the caller is
        gone, so clean up in ``finally``. Raise a :class:`lensd_api.errors.LensdError` for
        what the caller should know; anything else is reported as a failure of the plugin.
        """

    def requirements(self, params: Any | None = None) -> Requirements:
        """What it needs; with ``params`` ``None``, what every request needs."""
        return Requirements()

    def estimate(self, params: Any, card: ModelCard) -> Cost:
        """What ``params`` will take on the model of ``card``. The default is cautious."""
        return Cost(tokens=card.anatomy.context_length)


@dataclass(frozen=True, slots=True)
class AnalyzerFlaw:
    """Why an object cannot serve as an analyzer."""

    problem: str


_NAME = r"[a-z0-9][a-z0-9-]{0,63}"


def is_async(analyzer: Analyzer) -> bool:
    """Whether ``analyze`` is an async generator."""
    return inspect.isasyncgenfunction(analyzer.analyze)


def find_flaw(analyzer: object) -> AnalyzerFlaw | None:
    """Checks the shape of an analyzer, so that a wrong one is refused when it is loaded."""
    if not isinstance(analyzer, Analyzer):
        return AnalyzerFlaw(f"{type(analyzer).__name__} is not a lensd_api.Analyzer instance")
    label = type(analyzer).__name__
    name = getattr(analyzer, "name", None)
    if not isinstance(name, str) or not re.fullmatch(_NAME, name):
        return AnalyzerFlaw(f"{label}.name must match {_NAME}, not {name!r}")
    params: object = getattr(analyzer, "Params", None)
    if not (isinstance(params, type) and issubclass(params, BaseParams)):
        return AnalyzerFlaw(f"{label}.Params must subclass lensd_api.BaseParams")
    if not (is_async(analyzer) or inspect.isgeneratorfunction(analyzer.analyze)):
        return AnalyzerFlaw(f"{label}.analyze must be a generator or an async generator: it has to `yield`")
    accepted = list(inspect.signature(analyzer.analyze).parameters)
    if len(accepted) != 2:
        return AnalyzerFlaw(
            f"{label}.analyze must accept (self, params, ctx), not (self, {', '.join(accepted)})"
        )
    return None
