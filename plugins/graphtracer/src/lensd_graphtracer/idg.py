"""The information dependency graph: an edge from a step to each later step that refers to it.

Edges go forward in the log, so the graph is acyclic whatever addresses say. A step is a node
only if a later one refers to it, or if it is the last that says something.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import networkx as nx

from lensd_graphtracer.index import Evidence, TermIndex
from lensd_graphtracer.references import Sort, Term, find_terms
from lensd_graphtracer.signals import Signal, find_signs
from lensd_graphtracer.trace import Kind, Step, Trace

#: Weight of an address the log states, in the units of shared terms.
_ADDRESSED = 6.0
#: Parents weaker than this share of the strongest are dropped.
_FLOOR = 0.15
#: A text this weak a match is no reference.
_WEAKEST = 0.5
#: Nodes from which betweenness is estimated when there are more.
PIVOTS = 128


@dataclass(frozen=True, slots=True)
class Dependency:
    """Step ``target`` refers to step ``source``; ``start:end`` is the span of the target that shows it."""

    source: int
    target: int
    kind: str
    weight: float
    start: int = 0
    end: int = 0


@dataclass(slots=True)
class Reading:
    """What was found in a step while the graph grew."""

    step: Step
    terms: int
    #: Terms no earlier step had.
    new_terms: int
    #: New numbers, names, quotes and URLs: what the step claims on its own.
    new_facts: int
    facts: int
    parents: tuple[Dependency, ...] = ()


@dataclass(slots=True)
class DependencyGraph:
    """Edges by step while they are found; node measures once all are known."""

    max_parents: int = 4
    index: TermIndex = field(default_factory=TermIndex)
    readings: list[Reading] = field(default_factory=list[Reading])
    _asked: dict[str, int] = field(default_factory=dict[str, int])
    _last_by_agent: dict[str, int] = field(default_factory=dict[str, int])

    def grow(self, step: Step) -> Reading:
        """Adds one content step. Time is linear in its text."""
        terms = find_terms(step.content)
        fresh = [term for term in terms if self.index.posting(term.key) is None]
        reading = Reading(
            step,
            terms=len(terms),
            new_terms=len(fresh),
            new_facts=sum(_is_fact(term) for term in fresh),
            facts=sum(_is_fact(term) for term in terms),
        )
        reading.parents = tuple(self._parents(step, terms))
        self.index.add(step.index, terms)
        if step.kind is Kind.INSTRUCTION:
            self._asked[step.to] = step.index
        self._last_by_agent[step.agent] = step.index
        self.readings.append(reading)
        return reading

    def _parents(self, step: Step, terms: Sequence[Term]) -> Iterator[Dependency]:
        found = dict(self.index.sources(terms))
        addressed = self._asked.pop(step.agent, None)
        kind = "address"
        if addressed is None and step.kind is Kind.TOOL and self.readings:
            # A tool answers whoever spoke last, whatever its output repeats.
            addressed, kind = self.readings[-1].step.index, "execution"
        ranked = sorted(found.items(), key=lambda pair: (-pair[1].weight, -pair[0]))
        strongest = max((e.weight for e in found.values()), default=0.0)
        chosen = [(i, e) for i, e in ranked if e.weight >= max(_WEAKEST, _FLOOR * strongest)]
        kept: list[Dependency] = []
        if addressed is not None:
            extra = found[addressed].weight if addressed in found else 0.0
            kept.append(Dependency(addressed, step.index, kind, _ADDRESSED + extra))
        for source, evidence in chosen:
            if source != addressed and len(kept) < self.max_parents:
                kept.append(_shared(source, step.index, evidence))
        if not kept and self.readings:
            kept.append(Dependency(self.readings[-1].step.index, step.index, "previous", 0.1))
        yield from sorted(kept, key=lambda d: d.source)

    def edges(self) -> list[Dependency]:
        """All edges, by target."""
        return [edge for reading in self.readings for edge in reading.parents]


def _is_fact(term: Term) -> bool:
    return term.sort in (Sort.NUMBER, Sort.URL, Sort.QUOTE, Sort.NAME)


def _shared(source: int, target: int, evidence: Evidence) -> Dependency:
    return Dependency(
        source, target, f"shared_{evidence.sort}", evidence.weight, evidence.start, evidence.end
    )


def build(trace: Trace, max_parents: int = 4) -> DependencyGraph:
    """The graph of a whole trace."""
    graph = DependencyGraph(max_parents)
    for step in trace.content_steps:
        graph.grow(step)
    return graph


@dataclass(frozen=True, slots=True)
class Measures:
    """What is known of the nodes once the graph is whole."""

    nodes: frozenset[int]
    impact: dict[int, float]
    out_degree: dict[int, int]
    #: Ancestors of the terminal step, itself included.
    ancestors: frozenset[int]
    terminal: int
    #: Nodes that refer to nothing before them: observations.
    sources: frozenset[int]
    #: Whether betweenness was estimated from ``PIVOTS`` nodes.
    estimated: bool


def find_terminal(steps: Sequence[Step]) -> int:
    """Where the failure shows: the last step in which something happens, else the last."""
    lively = (step.index for step in reversed(steps) if Signal.IDLE not in find_signs(step.content))
    return next(lively, steps[-1].index)


def measure(steps: Sequence[Step], edges: Sequence[Dependency], alpha: float = 0.5) -> Measures:
    """Impact(v) = alpha * out-degree + (1 - alpha) * betweenness, each as a share of its largest value.

    The publication gives neither alpha nor the scaling; this is ours.
    """
    terminal = find_terminal(steps)
    whole: nx.DiGraph[int] = nx.DiGraph()
    places = [step.index for step in steps]
    whole.add_nodes_from(places)
    whole.add_edges_from((edge.source, edge.target) for edge in edges)
    nodes = frozenset(v for v in places if whole.out_degree(v) > 0 or v == terminal)
    graph = whole.subgraph(nodes)
    estimated = len(nodes) > PIVOTS
    between = nx.betweenness_centrality(graph, k=PIVOTS if estimated else None, normalized=False, seed=0)
    degree = {v: int(graph.out_degree(v)) for v in nodes}
    most, widest = max(degree.values()) or 1, max(between.values()) or 1.0
    impact = {v: alpha * degree[v] / most + (1 - alpha) * between[v] / widest for v in nodes}
    ancestors = frozenset({terminal, *nx.ancestors(whole, terminal)})  # pyright: ignore[reportUnknownMemberType]
    sources = frozenset(v for v in nodes if graph.in_degree(v) == 0)
    return Measures(
        nodes, impact, {v: int(whole.out_degree(v)) for v in places}, ancestors, terminal, sources, estimated
    )
