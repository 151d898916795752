"""Where the end of a run got its content from: its share is followed backwards along the edges."""

from collections.abc import Mapping, Sequence

from lensd_graphtracer.idg import Reading


def trace_back(readings: Sequence[Reading], terminal: int) -> Mapping[int, float]:
    """Share of the terminal step's content that originates at each step; the shares add up to 1.

    A step keeps the share of its facts that nobody said before it and passes the rest to its
    parents in proportion to the weights of the edges. Linear in the number of edges.
    """
    flow = {reading.step.index: 0.0 for reading in readings}
    flow[terminal] = 1.0
    origin: dict[int, float] = {}
    for reading in reversed(readings):
        step = reading.step.index
        weight = sum(edge.weight for edge in reading.parents)
        # Half a fact each way: a step without facts is as new as it is repeated.
        own = (reading.new_facts + 0.5) / (reading.facts + 1.0) if weight > 0 else 1.0
        origin[step] = flow[step] * own
        for edge in reading.parents:
            flow[edge.source] += flow[step] * (1.0 - own) * edge.weight / weight
    return origin
