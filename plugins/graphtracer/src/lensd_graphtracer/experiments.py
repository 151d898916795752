"""What the evaluation compares: trivial rules, untrained rules, the trained ranker, and its ablations.

A trained method is judged on a run only by weights fitted without any run of the same question.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lensd_graphtracer.benchmark import Case
from lensd_graphtracer.features import GRAPH_FEATURES, describe
from lensd_graphtracer.fitting import Sample, held_out
from lensd_graphtracer.flow import Flow
from lensd_graphtracer.idg import DependencyGraph, build, measure
from lensd_graphtracer.localise import by_rules
from lensd_graphtracer.params import Edges
from lensd_graphtracer.ranker import rank, shipped
from lensd_graphtracer.rewiring import add_flow, rewire
from lensd_graphtracer.rules import RULES, Guess
from lensd_graphtracer.scoring import Outcome, judge, judge_uniform

Flows = Mapping[str, Sequence[Flow]]


@dataclass(frozen=True, slots=True)
class Method:
    """Outcomes of one method, in the order of the cases, and what it took."""

    name: str
    kind: str
    outcomes: tuple[Outcome, ...]
    #: Places, where each prediction is one.
    guesses: tuple[Guess, ...] = ()
    seconds: float = 0.0
    tokens: int = 0
    note: str = ""
    confidences: tuple[float, ...] = field(default=())


def trivial(cases: Sequence[Case]) -> list[Method]:
    """Uniform guessing, the labels' own majority, and the rules."""
    uniform = [judge_uniform([s.agent for s in c.trace.steps], c.agent, c.step) for c in cases]
    found = [Method("uniform random (expected)", "trivial", tuple(uniform)), _majority(cases)]
    for name, rule in RULES.items():
        guesses = [rule(case.trace.steps) for case in cases]
        places = sum(
            g.step is not None and c.trace.steps[g.step].agent == g.agent
            for g, c in zip(guesses, cases, strict=True)
        )
        note = (
            "" if places == len(cases) else f"agent and step are one place in {places} of {len(cases)} runs"
        )
        found.append(_judged(name, "trivial", cases, guesses, note=note))
    return found


def _majority(cases: Sequence[Case]) -> Method:
    """Always the agent blamed most often in the subset, which looks at the labels."""
    most: dict[str, str] = {}
    for subset in {case.subset for case in cases}:
        blamed = [case.agent for case in cases if case.subset == subset]
        most[subset] = max(dict.fromkeys(blamed), key=blamed.count)
    guesses = [Guess(most[case.subset], None) for case in cases]
    return _judged("always the majority agent (sees the labels)", "trivial", cases, guesses)


def untrained(cases: Sequence[Case]) -> Method:
    """The earliest suspicious ancestor of the symptom without suspicious parents."""
    started = time.perf_counter()
    guesses: list[Guess] = []
    for case in cases:
        graph = build(case.trace)
        measures = measure([r.step for r in graph.readings], graph.edges())
        step = by_rules(describe(case.trace, graph.readings, measures), graph.edges(), measures)
        guesses.append(Guess(case.trace.steps[step].agent, step))
    return _judged("graph and rules, untrained", "ours", cases, guesses, time.perf_counter() - started)


def trained(
    name: str,
    cases: Sequence[Case],
    edges: Edges = Edges.REFERENCES,
    *,
    with_answer: bool = False,
    flows: Flows | None = None,
    kind: str = "ours",
) -> Method:
    """The ranker, cross-validated by question, on graphs with the edges asked for."""
    started = time.perf_counter()
    samples = [sample_of(case, edges, with_answer=with_answer, flows=flows) for case in cases]
    leave_out = frozenset(GRAPH_FEATURES) if edges is Edges.NONE else frozenset[str]()
    guesses: list[Guess] = []
    confidences: list[float] = []
    for i, ranker in held_out(samples, leave_out):
        first = rank(samples[i].scene, ranker)[0]
        guesses.append(Guess(first.candidate.agent, first.step))
        confidences.append(first.probability)
    spent = time.perf_counter() - started
    return _judged(name, kind, cases, guesses, spent, confidences=confidences)


def as_shipped(cases: Sequence[Case], *, with_answer: bool = False) -> Method:
    """The ranker with the weights that come with the package; which runs they have seen is the table's business."""
    started = time.perf_counter()
    guesses: list[Guess] = []
    confidences: list[float] = []
    for case in cases:
        sample = sample_of(case, Edges.REFERENCES, with_answer=with_answer)
        first = rank(sample.scene, shipped(with_answer=with_answer))[0]
        guesses.append(Guess(first.candidate.agent, first.step))
        confidences.append(first.probability)
    name = f"shipped weights{', with the answer' if with_answer else ''}"
    return _judged(name, "shipped", cases, guesses, time.perf_counter() - started, confidences=confidences)


def sample_of(case: Case, edges: Edges, *, with_answer: bool = False, flows: Flows | None = None) -> Sample:
    """What the ranker sees of a case when the graph has these edges."""
    graph = DependencyGraph()
    mine = flows.get(f"{case.subset}/{case.name}", ()) if flows else ()
    earlier: list[int] = []
    for step in case.trace.content_steps:
        reading = graph.grow(step)
        if into := [flow for flow in mine if flow.target == step.index]:
            reading.parents = add_flow(reading.parents, into, graph.max_parents)
        rewire(reading, earlier, edges)
        earlier.append(step.index)
    measures = measure([r.step for r in graph.readings], graph.edges())
    right = (case.trace.right_answer or "") if with_answer else None
    scene = describe(case.trace, graph.readings, measures, right, use_graph=edges is not Edges.NONE)
    return Sample(scene, case.step, case.group)


def _judged(
    name: str,
    kind: str,
    cases: Sequence[Case],
    guesses: Sequence[Guess],
    seconds: float = 0.0,
    *,
    note: str = "",
    confidences: Sequence[float] = (),
) -> Method:
    outcomes = [judge(g.agent, g.step, c.agent, c.step) for g, c in zip(guesses, cases, strict=True)]
    return Method(name, kind, tuple(outcomes), tuple(guesses), seconds, 0, note, tuple(confidences))


#: Structure-only methods in the order of the table.
METHODS: tuple[Callable[[Sequence[Case]], Method], ...] = (
    untrained,
    lambda cases: trained("graph and ranker", cases),
    lambda cases: trained("graph and ranker, with the answer", cases, with_answer=True),
    lambda cases: trained("ablation: no graph", cases, Edges.NONE, kind="ablation"),
    lambda cases: trained("ablation: shuffled edges", cases, Edges.SHUFFLED, kind="ablation"),
    lambda cases: trained("ablation: time order only", cases, Edges.TIME, kind="ablation"),
)
