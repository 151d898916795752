"""One analysis from its trace to its results, in the order they are found."""

from collections.abc import Iterator, Mapping

from lensd_api import BlockingContext, InvalidParams, Result
from lensd_graphtracer import report
from lensd_graphtracer.conflicts import find_conflicts
from lensd_graphtracer.counterfactual import Effect, Which, measure_support
from lensd_graphtracer.features import describe
from lensd_graphtracer.flow import Flow, FlowPlan, measure_flow, plan_flow
from lensd_graphtracer.idg import DependencyGraph, measure
from lensd_graphtracer.localise import conclude
from lensd_graphtracer.params import Edges, GraphTracerParams
from lensd_graphtracer.ranker import rank, shipped
from lensd_graphtracer.rewiring import add_flow, rewire
from lensd_graphtracer.trace import UNNAMED, Step, Trace

#: Edges of one part of the stream, and into how many parts a long log is divided at most.
_PART_EDGES, _PARTS = 8, 200
#: Steps between two looks at whether anybody still waits.
_LOOK = 16


class Run:
    """State of one analysis."""

    def __init__(self, trace: Trace, params: GraphTracerParams, ctx: BlockingContext) -> None:
        self._trace, self._params, self._ctx = trace, params, ctx
        self._steps: Mapping[int, Step] = {step.index: step for step in trace.steps}
        self._graph = DependencyGraph(params.max_parents)
        self._growing = report.GrowingGraph()
        self._flows: list[Flow] = []
        self._plan: FlowPlan | None = None

    def results(self) -> Iterator[Result]:
        """Everything the caller gets."""
        self._warn()
        yield report.steps_table(self._trace)
        if self._params.use_model:
            self._plan = self._make_plan()
        yield from self._grow()
        yield from self._conclude()

    def _warn(self) -> None:
        trace = self._trace
        if all(step.agent == UNNAMED for step in trace.steps):
            self._ctx.warn(
                "NO_SPEAKERS", "the log names no speakers: only the step of the answer means anything"
            )
        if self._params.use_answer and trace.right_answer is None:
            self._ctx.warn(
                "NO_RIGHT_ANSWER", "use_answer is set, but the log has no right answer; went on without"
            )
        if len(trace.content_steps) == 1:
            self._ctx.warn("ONE_STEP", "the log has one step that says anything: there is no other to blame")

    def _make_plan(self) -> FlowPlan:
        known = {step.index for step in self._trace.content_steps}
        if unknown := sorted(set(self._params.flow_steps or ()) - known):
            raise InvalidParams.field("flow_steps", f"step {unknown[0]} says nothing or is not in the log")
        plan = plan_flow(self._trace.task, self._trace.content_steps, self._params, self._ctx.model)
        if plan.skipped:
            self._ctx.warn(
                "FLOW_INCOMPLETE",
                f"max_rows={self._params.max_rows} leaves {len(plan.skipped)} steps without information flow "
                f"(measured: {len(plan.targets)}); their edges are structural",
            )
        return plan

    def _grow(self) -> Iterator[Result]:
        steps = self._trace.content_steps
        measured = iter(()) if self._plan is None else measure_flow(self._plan, self._steps, self._ctx.model)
        targets = frozenset(t.step for t in self._plan.targets) if self._plan else frozenset[int]()
        per_part = max(_PART_EDGES, len(steps) * self._params.max_parents // _PARTS)
        earlier: list[int] = []
        none: list[Flow] = []
        for done, step in enumerate(steps, 1):
            if done % _LOOK == 0 and self._ctx.cancelled:
                return
            reading = self._graph.grow(step)
            flows: list[Flow] = next(measured, none) if step.index in targets else none
            self._flows += flows
            reading.parents = (
                add_flow(reading.parents, flows, self._params.max_parents) if flows else reading.parents
            )
            if self._params.edges is not Edges.REFERENCES:
                rewire(reading, earlier, self._params.edges)
            earlier.append(step.index)
            self._growing.add(reading, {flow.source: flow for flow in flows})
            self._ctx.progress(done, len(steps), stage="reading", unit="steps")
            if (part := self._growing.part(per_part)) is not None:
                yield part

    def _conclude(self) -> Iterator[Result]:
        params, readings, edges = self._params, self._graph.readings, self._graph.edges()
        measures = measure([reading.step for reading in readings], edges)
        with_answer = params.use_answer and self._trace.right_answer is not None
        right = self._trace.right_answer if with_answer else None
        scene = describe(self._trace, readings, measures, right, use_graph=params.edges is not Edges.NONE)
        suspects = rank(scene, shipped(with_answer=with_answer))
        root = conclude(suspects, scene, edges, measures, self._steps)
        yield self._growing.finish(self._steps, measures, suspects, root)
        yield report.conflicts_table(find_conflicts(readings, edges))
        if self._plan is not None:
            yield report.flow_table(self._flows, self._steps)
            yield report.support_table(self._support(right), self._steps)
        yield report.suspects_table(suspects, scene, measures, params.top_k)
        method = "structure and model" if params.use_model else "structure"
        yield report.root_record(root, scene, method)
        inside = sum(e.source in measures.nodes and e.target in measures.nodes for e in edges)
        yield report.reading_record(self._trace, self._graph, measures, self._plan, inside)

    def _support(self, right: str | None) -> list[Effect]:
        """Effects on the answers there are, over the steps that fit the window, newest first."""
        plan = self._plan
        if plan is None or not plan.ending:
            return []
        answers: list[tuple[str, Which]] = []
        if right is not None:
            answers.append((right, "right"))
        if self._trace.final_answer is not None:
            answers.append((self._trace.final_answer, "given"))
        return [
            effect
            for answer, which in answers
            for effect in measure_support(plan.preamble, plan.ending, answer, which, self._ctx.model)
        ]
