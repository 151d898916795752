"""Graphs: nodes and edges with attributes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lensd_client.results import graph_formats, graph_picture, html

if TYPE_CHECKING:
    import networkx as nx


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

    def to_networkx(self) -> "nx.DiGraph[str]":
        """A ``networkx.DiGraph`` with all attributes. Needs the ``networkx`` extra."""
        return graph_formats.to_networkx(self)

    def to_dot(self) -> str:
        """The graph for Graphviz, the path an analysis marked in red."""
        return graph_formats.to_dot(self)

    def to_mermaid(self) -> str:
        """The graph as a Mermaid flow chart, the path an analysis marked thick."""
        return graph_formats.to_mermaid(self)

    def to_html(self) -> str:
        """A self-contained HTML page with a picture, the path an analysis marked in red."""
        return graph_picture.to_html(self)

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
