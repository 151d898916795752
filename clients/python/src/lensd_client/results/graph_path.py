"""The path an analysis marked in a graph: nodes with a true attribute ``on_path``, joined by its edges."""

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lensd_client.results.graph import Edge, Graph, Node


def marked_path(graph: "Graph") -> "tuple[list[Node], list[Edge | None]]":
    """Marked nodes from the first to the last, and the edge into each but the first.

    The order is the one that edges between them give; nodes that no edge orders keep theirs.
    ``None`` stands where no edge joins two neighbours. Both are empty where nothing is marked.
    """
    nodes = [node for node in graph.nodes if node.attributes.get("on_path") is True]
    marked = {node.id for node in nodes}
    inside = {(e.source, e.target): e for e in graph.edges if e.source in marked and e.target in marked}
    before = {node.id: sum(target == node.id for _, target in inside) for node in nodes}
    ordered: list[Node] = []
    waiting = list(nodes)
    while waiting:
        # A cycle has no first node: its nodes stay in the order of the graph.
        chosen = next((node for node in waiting if before[node.id] == 0), waiting[0])
        waiting.remove(chosen)
        ordered.append(chosen)
        for source, target in inside:
            if source == chosen.id:
                before[target] -= 1
    joins = [inside.get((a.id, b.id)) for a, b in pairwise(ordered)]
    return ordered, joins
