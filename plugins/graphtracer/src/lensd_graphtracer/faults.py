"""Synthetic failures: one fact of an influential step is made wrong, and the place is the label.

Steps are taken in order of Impact, because an error there spreads furthest. With ``spread`` the
steps downstream repeat the wrong fact, as agents who believed it would have.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lensd_graphtracer.conflicts import descendants_of
from lensd_graphtracer.idg import DependencyGraph, build, measure
from lensd_graphtracer.references import Sort, Term, find_terms
from lensd_graphtracer.trace import Kind, Step, Trace


@dataclass(frozen=True, slots=True)
class Fault:
    """A wrong fact in ``step``: ``before`` became ``after`` there and in ``spread_to``."""

    step: int
    agent: str
    impact: float
    sort: Sort
    before: str
    after: str
    spread_to: tuple[int, ...]
    trace: Trace


def inject(trace: Trace, count: int, seed: int, *, spread: bool) -> list[Fault]:
    """At most ``count`` faults, each in a copy of ``trace`` of its own, by falling Impact of their steps.

    Steps whose facts nobody downstream repeats are passed over: changing them would break nothing.
    The same seed gives the same faults.
    """
    graph = build(trace)
    edges = graph.edges()
    measures = measure([r.step for r in graph.readings], edges)
    order = sorted(measures.nodes, key=lambda v: (-measures.impact[v], v))
    draw = random.Random(seed)
    downstream = descendants_of([r.step.index for r in graph.readings], edges)
    faults: list[Fault] = []
    for place in order:
        step = trace.steps[place]
        if len(faults) == count or step.kind in (Kind.ASK, Kind.CONTROL):
            continue
        later = [trace.steps[v] for v in downstream[place] if v != place]
        term = _most_repeated(graph, step, later)
        if term is None:
            continue
        before = step.content[term.start : term.end]
        after = _wrong(before, term.sort, trace, draw)
        if after is None:
            continue
        touched = tuple(s.index for s in later if before in s.content) if spread else ()
        changed = _replace(trace, {place, *touched}, before, after)
        faults.append(
            Fault(place, step.agent, measures.impact[place], term.sort, before, after, touched, changed)
        )
    return faults


def _most_repeated(graph: DependencyGraph, step: Step, later: Sequence[Step]) -> Term | None:
    """The number or name that this step brought in and most later steps repeat."""
    best: tuple[int, int] = (0, 0)
    chosen: Term | None = None
    for term in find_terms(step.content):
        posting = graph.index.posting(term.key)
        if term.sort not in (Sort.NUMBER, Sort.NAME) or posting is None or posting.first != step.index:
            continue
        text = step.content[term.start : term.end]
        repeats = sum(text in s.content for s in later)
        if (repeats, -term.start) > best and repeats:
            best, chosen = (repeats, -term.start), term
    return chosen


def _wrong(text: str, sort: Sort, trace: Trace, draw: random.Random) -> str | None:
    """Another value of the same form: a number with one digit changed, another name of the log."""
    if sort is Sort.NUMBER:
        digits = [i for i, c in enumerate(text) if c.isdigit()]
        i = draw.choice(digits)
        other = draw.choice([d for d in "123456789" if d != text[i]])
        return text[:i] + other + text[i + 1 :]
    names = {
        step.content[term.start : term.end]
        for step in trace.steps
        for term in find_terms(step.content)
        if term.sort is Sort.NAME
    }
    others = sorted(name for name in names if text not in name and name not in text)
    return draw.choice(others) if others else None


def _replace(trace: Trace, places: set[int], before: str, after: str) -> Trace:
    steps = tuple(
        replace(step, content=step.content.replace(before, after)) if step.index in places else step
        for step in trace.steps
    )
    return replace(trace, steps=steps)
