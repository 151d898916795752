"""Who&When files with their labels, for training and evaluation only; the analyzer never imports this."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lensd_graphtracer.features import describe
from lensd_graphtracer.fitting import Sample, group_of
from lensd_graphtracer.formats import read_trace
from lensd_graphtracer.idg import build, measure
from lensd_graphtracer.trace import Trace

_LABELS = ("mistake_agent", "mistake_step", "mistake_reason")


@dataclass(frozen=True, slots=True)
class Case:
    """A labelled run. ``log`` is the file without its labels."""

    subset: str
    name: str
    log: dict[str, Any]
    trace: Trace
    agent: str
    step: int

    @property
    def group(self) -> str:
        """Runs of one question share it."""
        return group_of(self.trace.task)


def read_cases(folder: Path) -> list[Case]:
    """Every labelled file below ``folder``, by subset (the name of its folder) and number.

    Raises ValueError for a file without labels, and when there is none at all.
    """
    cases = [_read(path) for path in sorted(folder.rglob("*.json"), key=_order)]
    if not cases:
        raise ValueError(f"no .json files below {folder}")
    return cases


def _order(path: Path) -> tuple[str, int, str]:
    return path.parent.name, int(path.stem) if path.stem.isdecimal() else 0, path.stem


def _read(path: Path) -> Case:
    values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    missing = [name for name in _LABELS[:2] if name not in values]
    if missing:
        raise ValueError(f"{path}: no {', '.join(missing)}")
    log = {name: value for name, value in values.items() if name not in _LABELS}
    return Case(
        subset=path.parent.name,
        name=path.stem,
        log=log,
        trace=read_trace(log, "who_and_when"),
        agent=str(values["mistake_agent"]),
        step=int(values["mistake_step"]),
    )


def to_sample(case: Case, *, with_answer: bool = False) -> Sample:
    """The case with what the ranker looks at."""
    graph = build(case.trace)
    measures = measure([r.step for r in graph.readings], graph.edges())
    right = case.trace.right_answer or "" if with_answer else None
    return Sample(describe(case.trace, graph.readings, measures, right), case.step, case.group)
