"""The analyzer: from parameters to streamed results."""

from collections.abc import Iterator

from lensd_api import Analyzer, BlockingContext, Cost, Example, ModelCard, Requirements, Result, ResultSpec
from lensd_graphtracer.examples import MISREAD_PRICE, PLANTED_CODE
from lensd_graphtracer.flow import ROWS_AT_ONCE, plan_flow
from lensd_graphtracer.formats import read_trace
from lensd_graphtracer.params import GraphTracerParams
from lensd_graphtracer.run import Run


class GraphTracer(Analyzer):
    """Who broke a multi-agent run, and when: failure attribution by what depends on what."""

    name = "graphtracer"
    Params = GraphTracerParams
    results = (
        ResultSpec("steps", "table", "the log as it was read: speakers normalised, kinds, addressees"),
        ResultSpec("idg", "graph", "edges while they are found; nodes with impact and suspicion at the end"),
        ResultSpec("conflicts", "table", "steps that disagree and whose words both reached a later step"),
        ResultSpec("flow", "table", "with a model: nats per token each step owes to each earlier one"),
        ResultSpec(
            "counterfactual", "table", "with a model: what leaving out a step does to the answers known"
        ),
        ResultSpec("suspects", "table", "the ranking with probabilities and reasons"),
        ResultSpec("root_cause", "record", "agent, step, confidence, path to the symptom, evidence in words"),
        ResultSpec("reading", "record", "what was read, what was left out, and the sizes of the graph"),
    )
    examples = (
        Example(
            "misread-price",
            "who broke a small run, from structure alone",
            {"trace": MISREAD_PRICE},
        ),
        Example(
            "planted-code",
            "which step a number came from, as the model sees it",
            {
                "trace": PLANTED_CODE,
                "use_model": True,
                "flow_steps": [6],
                "step_tokens": 40,
                "output_tokens": 32,
            },
        ),
    )

    def requirements(self, params: GraphTracerParams | None = None) -> Requirements:
        """No model, unless information flow is asked for."""
        return Requirements(model=params is not None and params.use_model)

    def estimate(self, params: GraphTracerParams, card: ModelCard) -> Cost:
        """Tokens of every row of the information flow; none without it."""
        if not params.use_model:
            return Cost()
        trace = read_trace(params.trace, params.format)
        plan = plan_flow(trace.task, trace.content_steps, params, card)
        tokens = plan.tokens + 2 * (1 + len(plan.ending)) * params.window_tokens
        # Log-probabilities are made of the states of all rows sent at a time.
        at_once = min(tokens, ROWS_AT_ONCE * card.anatomy.context_length)
        return Cost(tokens=tokens, bytes=at_once * card.anatomy.d_model * 4)

    def analyze(self, params: GraphTracerParams, ctx: BlockingContext) -> Iterator[Result]:
        """Yields edges while the log is read, then the answer."""
        yield from Run(read_trace(params.trace, params.format), params, ctx).results()
