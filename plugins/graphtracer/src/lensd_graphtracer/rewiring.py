"""Other edges in place of those found: the model's added, or the ablations' wrong ones."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lensd_graphtracer.flow import Flow
from lensd_graphtracer.idg import Dependency, Reading
from lensd_graphtracer.params import Edges

#: Nats per token from which a flow is a reference of its own.
FLOW_FLOOR = 0.05


def add_flow(
    parents: Sequence[Dependency], flows: Sequence[Flow], max_parents: int
) -> tuple[Dependency, ...]:
    """Parents with what the model measured: weights grow by the flow in nats, new ones are added.

    A structural edge that the model sees nothing of keeps its weight: windows and cuts may hide it.
    """
    by_source: Mapping[int, Flow] = {flow.source: flow for flow in flows}
    merged: dict[int, Dependency] = {}
    for edge in parents:
        flow = by_source.get(edge.source)
        gain = max(0.0, flow.total) if flow is not None else 0.0
        if edge.kind == "previous" and flow is not None and flow.per_token >= FLOW_FLOOR:
            edge = replace(edge, kind="flow", start=flow.start, end=flow.end)
        merged[edge.source] = replace(edge, weight=edge.weight + gain)
    for flow in flows:
        if flow.source not in merged and flow.per_token >= FLOW_FLOOR:
            merged[flow.source] = Dependency(
                flow.source, flow.target, "flow", flow.total, flow.start, flow.end
            )
    strongest = sorted(
        merged.values(), key=lambda e: (e.kind not in ("address", "execution"), -e.weight, -e.source)
    )
    return tuple(sorted(strongest[:max_parents], key=lambda e: e.source))


def rewire(reading: Reading, earlier: Sequence[int], edges: Edges) -> None:
    """Replaces the parents of ``reading`` as an ablation wants them; references stay as they are."""
    step = reading.step.index
    if edges is Edges.NONE or not earlier:
        reading.parents = () if edges is not Edges.REFERENCES else reading.parents
        return
    if edges is Edges.TIME:
        reading.parents = (Dependency(earlier[-1], step, "previous", 1.0),)
    elif edges is Edges.SHUFFLED:
        drawn = random.Random(step).sample(list(earlier), min(len(earlier), len(reading.parents)))
        kept = reading.parents[: len(drawn)]
        reading.parents = tuple(
            Dependency(source, step, "shuffled", edge.weight)
            for source, edge in zip(sorted(drawn), kept, strict=True)
        )
