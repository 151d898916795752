"""Small logs that tests build on, and the way to run an analysis without a server."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lensd_api import Graph, Record, Result, Table
from lensd_graphtracer import GraphTracerParams
from lensd_graphtracer.formats import read_trace
from lensd_graphtracer.run import Run

#: Where labelled benchmark files lie beside a checkout, if anybody put them there.
BENCHMARK = Path(__file__).parents[4] / "shared" / "data" / "who_and_when"
needs_benchmark = pytest.mark.skipif(not BENCHMARK.is_dir(), reason=f"no benchmark files in {BENCHMARK}")


@dataclass
class QuietContext:
    """What a structural analysis asks of its context."""

    warnings: list[str] = field(default_factory=list[str])
    cancelled: bool = False
    request_id: str = "test"

    def warn(self, reason: str, message: str, *, item: str = "") -> None:
        self.warnings.append(reason)

    def progress(self, done: float, total: float = 0.0, *, stage: str = "", unit: str = "") -> None:
        assert 0 <= done <= total


def plain(*said: tuple[str, str], **more: Any) -> dict[str, Any]:
    """A log in the plain form."""
    steps = [{"agent": agent, "content": content} for agent, content in said]
    return {"task": more.pop("task", "Find the answer."), "steps": steps, **more}


def run(trace: Any, context: QuietContext | None = None, **params: Any) -> Iterator[Result]:
    """Results of one structural analysis."""
    asked = GraphTracerParams.parse({"trace": copy.deepcopy(trace), **params})
    return Run(read_trace(asked.trace, asked.format), asked, context or QuietContext()).results()  # type: ignore[arg-type]


@dataclass
class Found:
    """Results by name, parts of the graph joined."""

    tables: dict[str, Table]
    records: dict[str, Record]
    nodes: dict[int, Mapping[str, Any]]
    edges: dict[tuple[int, int], Mapping[str, Any]]


def found(trace: Any, context: QuietContext | None = None, **params: Any) -> Found:
    """Everything one structural analysis gives."""
    results = list(run(trace, context, **params))
    graphs = [r for r in results if isinstance(r, Graph)]
    return Found(
        {r.name: r for r in results if isinstance(r, Table)},
        {r.name: r for r in results if isinstance(r, Record)},
        {int(n.id): n.attributes for g in graphs for n in g.nodes},
        {(int(e.source), int(e.target)): e.attributes for g in graphs for e in g.edges},
    )
