"""From a ranking to an answer: root cause, the path to where the failure shows, and why, in words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import networkx as nx

from lensd_graphtracer.features import ANSWER_FEATURE, FEATURES, Family, Scene
from lensd_graphtracer.idg import Dependency, Measures
from lensd_graphtracer.ranker import Suspect
from lensd_graphtracer.signals import Sign, Signal
from lensd_graphtracer.trace import Step

#: How much a sign in a step, or a crash right after it, speaks of an error there; used without training.
_SUSPICION: Mapping[Signal, float] = {
    Signal.ASSUMPTION: 0.6,
    Signal.CRASH: 0.5,
    Signal.EMPTY_RESULT: 0.4,
    Signal.MISSING: 0.3,
    Signal.REFUSAL: 0.3,
    Signal.STALL: 0.3,
    Signal.GIVING_UP: 0.2,
    Signal.DOUBT: 0.2,
}
_CRASH_FOLLOWS = 0.5
#: From here on a step counts as suspicious.
_THRESHOLD = 0.5
#: Reasons given for one answer.
_REASONS = 5


@dataclass(frozen=True, slots=True)
class RootCause:
    """One place: ``step`` in the log and the agent who spoke there."""

    step: int
    agent: str
    #: Probability of the step, and of its agent, over all candidates.
    confidence: float
    agent_confidence: float
    #: Steps from the root cause to the symptom, or to the last step that its words reach.
    path: tuple[int, ...]
    reaches_symptom: bool
    symptom: int
    evidence: tuple[str, ...]


def conclude(
    suspects: Sequence[Suspect],
    scene: Scene,
    edges: Sequence[Dependency],
    measures: Measures,
    steps: Mapping[int, Step],
) -> RootCause:
    """The first suspect as the root cause, with the strongest path to the symptom."""
    first = suspects[0]
    path = strongest_path(first.step, measures.terminal, edges)
    return RootCause(
        step=first.step,
        agent=first.candidate.agent,
        confidence=first.probability,
        agent_confidence=first.agent_probability,
        path=path,
        reaches_symptom=path[-1] == measures.terminal,
        symptom=measures.terminal,
        evidence=tuple(_evidence(first, scene, path, edges, steps)),
    )


def strongest_path(source: int, target: int, edges: Sequence[Dependency]) -> tuple[int, ...]:
    """The path whose edges take the largest shares of what their targets refer to, multiplied.

    Where no edges lead to ``target``: the path to the last step that ``source`` reaches, maybe itself.
    """
    total: dict[int, float] = {}
    for edge in edges:
        total[edge.target] = total.get(edge.target, 0.0) + edge.weight
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_node(source)
    for edge in edges:
        cost = -math.log(edge.weight / total[edge.target]) if edge.weight > 0 else 50.0
        graph.add_edge(edge.source, edge.target, cost=max(0.0, cost) + 1e-9)
    reached = nx.single_source_dijkstra_path(graph, source, weight="cost")
    return tuple(reached[target] if target in reached else reached[max(reached)])


def by_rules(scene: Scene, edges: Sequence[Dependency], measures: Measures) -> int:
    """The untrained answer: the earliest suspicious ancestor of the symptom without suspicious parents.

    Else the most suspicious candidate, Impact breaking ties.
    """
    suspicion = {c.step: _suspicion(c.features, c.signs) for c in scene.candidates}
    bad = {step for step, value in suspicion.items() if value >= _THRESHOLD}
    parents: dict[int, set[int]] = {}
    for edge in edges:
        parents.setdefault(edge.target, set()).add(edge.source)
    for step in sorted(bad & measures.ancestors):
        if not parents.get(step, set()) & bad:
            return step
    return max(suspicion, key=lambda step: (suspicion[step] + 0.2 * measures.impact.get(step, 0.0), -step))


def _suspicion(features: Mapping[str, float], signs: Mapping[Signal, Sign]) -> float:
    innocent = math.prod(1.0 - weight for signal, weight in _SUSPICION.items() if signal in signs)
    return 1.0 - innocent * (1.0 - _CRASH_FOLLOWS * features.get("crash_follows", 0.0))


def in_words(name: str, family: Family) -> str:
    """What a high value of a feature says."""
    return "it says the right answer" if name == ANSWER_FEATURE else FEATURES[family][name]


def _evidence(
    suspect: Suspect,
    scene: Scene,
    path: Sequence[int],
    edges: Sequence[Dependency],
    steps: Mapping[int, Step],
) -> list[str]:
    said = [
        f"{in_words(name, scene.family)}{_quoted(name, suspect, steps)}"
        for name, value in sorted(suspect.reasons.items(), key=lambda pair: -pair[1])
        if value > 0.01
    ][:_REASONS]
    by_pair = {(edge.source, edge.target): edge for edge in edges}
    for source, target in pairwise(path):
        edge = by_pair[source, target]
        said.append(f"step {target} ({steps[target].agent}) {link_in_words(edge, steps)}")
    return said or ["nothing speaks for it in particular: it is the likeliest place by its position alone"]


def link_in_words(edge: Dependency, steps: Mapping[int, Step]) -> str:
    """Why there is an edge, from the point of view of its target."""
    span = " ".join(steps[edge.target].content[edge.start : edge.end].split())
    if edge.kind == "address":
        return f"answers step {edge.source}, which was addressed to it"
    if edge.kind == "execution":
        return f"is the output of what step {edge.source} asked to run"
    if edge.kind == "previous":
        return f"follows step {edge.source}; it refers to nothing in particular"
    if edge.kind == "flow":
        return f"is likelier with step {edge.source} before it" + (f": {span[:80]!r}" if span else "")
    return f"repeats {span[:80]!r} from step {edge.source}"


_SIGN_OF = {
    "assumption": Signal.ASSUMPTION,
    "refusal": Signal.REFUSAL,
    "doubt": Signal.DOUBT,
    "replan": Signal.GIVING_UP,
}


def _quoted(name: str, suspect: Suspect, steps: Mapping[int, Step]) -> str:
    sign = suspect.candidate.signs.get(_SIGN_OF[name]) if name in _SIGN_OF else None
    if sign is None:
        return ""
    content = steps[suspect.step].content
    return f": {' '.join(content[max(0, sign.start - 30) : sign.end + 30].split())!r}"
