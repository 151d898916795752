"""The analyzer that makes failures to practise on."""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from lensd_api import (
    AnalysisError,
    Analyzer,
    BaseParams,
    BlockingContext,
    Example,
    Record,
    Requirements,
    Result,
    ResultSpec,
    Table,
)
from lensd_graphtracer.examples import SOUND_PRICE
from lensd_graphtracer.faults import Fault, inject
from lensd_graphtracer.formats import read_trace
from lensd_graphtracer.trace import Kind


class FaultParams(BaseParams):
    """A log of a run that went well, and how many failures to make of it."""

    trace: dict[str, Any] | list[Any] = Field(description="The log of a successful run, in any known format.")
    format: Literal["auto", "plain", "who_and_when", "openai", "otel"] = Field(
        default="auto", description="What the log is; by default the only format it fits."
    )
    count: int = Field(default=3, ge=1, le=100, description="Failures made, at most: one wrong step each.")
    seed: int = Field(default=0, ge=0, lt=2**53, description="The same seed gives the same failures.")
    spread: bool = Field(default=True, description="Whether steps downstream repeat the wrong fact.")


class FaultInjection(Analyzer):
    """Makes labelled failures of a successful multi-agent run, at the steps that matter most."""

    name = "graphtracer-faults"
    Params = FaultParams
    results = (
        ResultSpec("faults", "table", "the wrong facts, by falling Impact of the step they are in"),
        ResultSpec("failure", "record", "one an item: the changed log in the plain form, and its label"),
    )
    examples = (
        Example(
            "wrong-price", "which step to corrupt, and the corrupted run", {"trace": SOUND_PRICE, "count": 2}
        ),
    )

    def requirements(self, params: FaultParams | None = None) -> Requirements:
        """No model."""
        return Requirements(model=False)

    def analyze(self, params: FaultParams, ctx: BlockingContext) -> Iterator[Result]:
        """Yields the table, then one changed log an item."""
        faults = inject(
            read_trace(params.trace, params.format), params.count, params.seed, spread=params.spread
        )
        if not faults:
            raise AnalysisError(
                "no step of this log brings in a number or a name that a later step repeats: nothing to make wrong",
                reason="NOTHING_TO_CORRUPT",
            )
        if len(faults) < params.count:
            ctx.warn("FEWER_FAULTS", f"only {len(faults)} steps bring in facts that later ones repeat")
        yield Table(
            "faults",
            {
                "item": [str(i) for i in range(len(faults))],
                "step": [f.step for f in faults],
                "agent": [f.agent for f in faults],
                "impact": [f.impact for f in faults],
                "sort": [f.sort.value for f in faults],
                "before": [f.before for f in faults],
                "after": [f.after for f in faults],
                "spread_to": [len(f.spread_to) for f in faults],
            },
            title="wrong facts, by falling Impact",
        )
        for i, fault in enumerate(faults):
            yield Record("failure", _failure(fault), item=str(i))


def _failure(fault: Fault) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [
        {
            "agent": s.agent,
            "content": s.content,
            "tool": s.kind is Kind.TOOL,
            **({"to": s.to} if s.to else {}),
        }
        for s in fault.trace.steps
    ]
    return {
        "trace": {"task": fault.trace.task, "steps": steps},
        "mistake_agent": fault.agent,
        "mistake_step": fault.step,
        "before": fault.before,
        "after": fault.after,
        "spread_to": list(fault.spread_to),
    }
