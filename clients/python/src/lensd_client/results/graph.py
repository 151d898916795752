"""Graphs: nodes and edges with attributes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lensd_client.results import html


@dataclass(frozen=True, slots=True)
class Node:
    """A node; ``id`` is unique in its graph."""

    id: str
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True)
class Edge:
    """An edge from the node ``source`` to the node ``target``."""

    source: str
    target: str
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, repr=False)
class Graph:
    """A directed graph."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    name: str = ""
    title: str = ""
    item: str = ""

    def to_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Nodes and edges with their attributes beside ``id``, ``source`` and ``target``."""
        return {
            "nodes": [{**node.attributes, "id": node.id} for node in self.nodes],
            "edges": [{**e.attributes, "source": e.source, "target": e.target} for e in self.edges],
        }

    def __repr__(self) -> str:
        return f"<Graph {self.name!r}: {len(self.nodes)} nodes, {len(self.edges)} edges>"

    def _repr_html_(self) -> str:
        names = list(dict.fromkeys(key for edge in self.edges for key in edge.attributes))
        rest = len(self.edges) - html.SHOWN
        return html.table(
            ["source", "target", *names],
            [
                [e.source, e.target, *(e.attributes.get(name) for name in names)]
                for e in self.edges[: html.SHOWN]
            ],
            caption=self.title or self.name,
            note=f"{self!r}" + (f", {rest} more edges" if rest > 0 else ""),
        )
