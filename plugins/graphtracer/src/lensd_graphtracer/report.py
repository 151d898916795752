"""Results for callers, made from what was computed."""

from collections.abc import Iterator, Mapping, Sequence

from lensd_api import Edge, Graph, Node, Record, Table
from lensd_graphtracer.conflicts import Conflict
from lensd_graphtracer.counterfactual import Effect
from lensd_graphtracer.features import Scene
from lensd_graphtracer.flow import Flow, FlowPlan
from lensd_graphtracer.idg import Dependency, DependencyGraph, Measures, Reading
from lensd_graphtracer.localise import RootCause, in_words
from lensd_graphtracer.ranker import Suspect
from lensd_graphtracer.references import is_cut
from lensd_graphtracer.trace import Step, Trace

#: Characters of an excerpt.
_EXCERPT = 120


def excerpt(text: str, limit: int = _EXCERPT) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text[: 4 * limit].split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def steps_table(trace: Trace) -> Table:
    """What was read, one row a step."""
    return Table(
        "steps",
        {
            "step": [s.index for s in trace.steps],
            "agent": [s.agent for s in trace.steps],
            "kind": [s.kind.value for s in trace.steps],
            "to": [s.to or None for s in trace.steps],
            "characters": [len(s.content) for s in trace.steps],
            "ref": [s.ref or None for s in trace.steps],
            "excerpt": [excerpt(s.content, 80) for s in trace.steps],
        },
        title="the log as it was read",
    )


class GrowingGraph:
    """Edges as parts of ``idg`` while they are found, nodes with their measures at the end.

    A step enters the graph when a later one refers to it. Edges into a step wait until then.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, list[Edge]] = {}
        self._admitted: set[int] = set()
        self._ready: list[Edge] = []

    def add(self, reading: Reading, flows: Mapping[int, Flow]) -> None:
        """Takes the edges of one step."""
        step = reading.step
        self._waiting[step.index] = [_edge(e, step, flows.get(e.source)) for e in reading.parents]
        for edge in reading.parents:
            self._admit(edge.source)

    def _admit(self, step: int) -> None:
        if step not in self._admitted:
            self._admitted.add(step)
            self._ready += self._waiting.pop(step, [])

    def part(self, at_least: int) -> Graph | None:
        """The edges found since the last part, once there are ``at_least``."""
        if len(self._ready) < at_least:
            return None
        ready, self._ready = self._ready, []
        return Graph("idg", (), ready, title=_TITLE, last=False)

    def finish(
        self, steps: Mapping[int, Step], measures: Measures, suspects: Sequence[Suspect], root: RootCause
    ) -> Graph:
        """The nodes, and the edges that still waited for the terminal step."""
        self._admit(measures.terminal)
        guilt = {s.step: s.probability for s in suspects}
        nodes = [
            Node(
                str(v),
                {
                    "step": v,
                    "agent": steps[v].agent,
                    "kind": steps[v].kind.value,
                    "excerpt": excerpt(steps[v].content),
                    "impact": measures.impact[v],
                    "suspicion": guilt.get(v, 0.0),
                    "observation": v in measures.sources,
                    "on_path": v in root.path,
                    "role": _role(v, root),
                },
            )
            for v in sorted(measures.nodes)
        ]
        return Graph("idg", nodes, self._ready, title=_TITLE, last=True)


_TITLE = "information dependency graph"


def _role(step: int, root: RootCause) -> str:
    if step == root.step:
        return "root cause"
    return "symptom" if step == root.symptom else ""


def _edge(edge: Dependency, target: Step, flow: Flow | None) -> Edge:
    return Edge(
        str(edge.source),
        str(edge.target),
        {
            "kind": edge.kind,
            "weight": edge.weight,
            "evidence": excerpt(target.content[edge.start : edge.end]),
            "start": edge.start,
            "end": edge.end,
            "flow": None if flow is None else flow.per_token,
        },
    )


def conflicts_table(conflicts: Sequence[Conflict]) -> Table:
    """One row a contradiction."""
    return Table(
        "conflicts",
        {
            "about": [c.key for c in conflicts],
            "first_step": [c.first.step for c in conflicts],
            "first_says": [c.first.value for c in conflicts],
            "second_step": [c.second.step for c in conflicts],
            "second_says": [c.second.value for c in conflicts],
            "meet_at": [c.meet for c in conflicts],
        },
        title="steps that disagree and whose words both reached a later step",
    )


def flow_table(flows: Sequence[Flow], steps: Mapping[int, Step]) -> Table:
    """One row a measured pair, in the order of the target."""
    return Table(
        "flow",
        {
            "source": [f.source for f in flows],
            "target": [f.target for f in flows],
            "value": [f.per_token for f in flows],
            "total": [f.total for f in flows],
            "evidence": [excerpt(steps[f.target].content[f.start : f.end]) for f in flows],
        },
        units={"value": "nats/token", "total": "nats"},
        title="how much likelier a step is with an earlier one before it",
    )


def support_table(effects: Sequence[Effect], steps: Mapping[int, Step]) -> Table:
    """One row a step and answer."""
    return Table(
        "counterfactual",
        {
            "step": [e.step for e in effects],
            "agent": [steps[e.step].agent for e in effects],
            "answer": [e.answer for e in effects],
            "value": [e.support for e in effects],
        },
        units={"value": "nats"},
        title="what leaving a step out takes from the log-probability of an answer",
    )


def suspects_table(suspects: Sequence[Suspect], scene: Scene, measures: Measures, top_k: int) -> Table:
    """The ranking; ``value`` is the probability."""
    shown = suspects[:top_k]
    return Table(
        "suspects",
        {
            "rank": list(range(1, len(shown) + 1)),
            "step": [s.step for s in shown],
            "agent": [s.candidate.agent for s in shown],
            "value": [s.probability for s in shown],
            "agent_value": [s.agent_probability for s in shown],
            "impact": [measures.impact.get(s.step, 0.0) for s in shown],
            "reaches_symptom": [s.step in measures.ancestors for s in shown],
            "reasons": ["; ".join(_reasons(s, scene)) for s in shown],
        },
        title="who may have broken the run, likeliest first",
    )


def _reasons(suspect: Suspect, scene: Scene) -> Iterator[str]:
    for name, value in sorted(suspect.reasons.items(), key=lambda pair: -pair[1])[:2]:
        if value > 0.01:
            yield in_words(name, scene.family)


def root_record(root: RootCause, scene: Scene, method: str) -> Record:
    """The answer."""
    return Record(
        "root_cause",
        {
            "agent": root.agent,
            "step": root.step,
            "confidence": root.confidence,
            "agent_confidence": root.agent_confidence,
            "path": list(root.path),
            "reaches_symptom": root.reaches_symptom,
            "symptom": root.symptom,
            "evidence": list(root.evidence),
            "family": scene.family.value,
            "method": method,
        },
        title="root cause",
    )


def reading_record(
    trace: Trace, graph: DependencyGraph, measures: Measures, plan: FlowPlan | None, edges: int
) -> Record:
    """What was read and what was left out."""
    values: dict[str, object] = {
        "format": trace.format,
        "steps": len(trace.steps),
        "content_steps": len(graph.readings),
        "agents": sorted({s.agent for s in trace.steps}),
        "characters": sum(len(s.content) for s in trace.steps),
        "steps_read_in_part": sum(is_cut(s.content) for s in trace.steps),
        "terms_not_indexed": graph.index.dropped,
        "nodes": len(measures.nodes),
        "edges": edges,
        "impact_is_estimated": measures.estimated,
        "right_answer_given": trace.right_answer is not None,
    }
    if plan is not None:
        values |= {
            "flow_steps": [t.step for t in plan.targets],
            "flow_steps_skipped": list(plan.skipped),
            "flow_rows": plan.rows,
            "flow_tokens": plan.tokens,
            "flow_steps_cut_as_context": plan.cut_steps,
            "flow_steps_cut_as_output": sum(t.output_cut for t in plan.targets),
            "flow_pairs_outside_window": sum(t.left_out for t in plan.targets),
        }
    return Record("reading", values, title="what was read, and what was left out")
