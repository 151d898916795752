"""Graphs in the languages of other tools: networkx, Graphviz and Mermaid.

Text from a server is quoted so that it can end no string and start no statement.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lensd_client.results.extras import require
from lensd_client.results.graph_path import marked_path

if TYPE_CHECKING:
    import networkx as nx

    from lensd_client.results.graph import Graph, Node

#: Characters of a label.
_LABEL = 60


def to_networkx(graph: "Graph") -> "nx.DiGraph[str]":
    """A ``networkx.DiGraph`` with all attributes; parallel edges are one. Needs the ``networkx`` extra."""
    library = require("networkx", "networkx")
    made: nx.DiGraph[str] = library.DiGraph(name=graph.name, title=graph.title)
    made.add_nodes_from((node.id, dict(node.attributes)) for node in graph.nodes)
    made.add_edges_from((edge.source, edge.target, dict(edge.attributes)) for edge in graph.edges)
    return made


def to_dot(graph: "Graph") -> str:
    """The graph in Graphviz's language, the marked path in red: ``dot -Tsvg`` draws it."""
    on_path = _steps_of_path(graph)
    lines = [f"digraph {_dot(graph.name or 'graph')} {{", "  rankdir=LR; node [shape=box, fontsize=10];"]
    for node in graph.nodes:
        mark = ', color="#c0392b", penwidth=2' if node.attributes.get("on_path") is True else ""
        lines.append(f"  {_dot(node.id)} [label={_dot(label(node))}{mark}];")
    for edge in graph.edges:
        attributes = [f"label={_dot(str(edge.attributes['kind']))}"] if "kind" in edge.attributes else []
        if (edge.source, edge.target) in on_path:
            attributes.append('color="#c0392b", penwidth=2')
        tail = f" [{', '.join(attributes)}]" if attributes else ""
        lines.append(f"  {_dot(edge.source)} -> {_dot(edge.target)}{tail};")
    return "\n".join([*lines, "}", ""])


def to_mermaid(graph: "Graph") -> str:
    """The graph as a Mermaid flow chart, the marked path thick: for Markdown files and issues."""
    names = {node.id: f"n{i}" for i, node in enumerate(graph.nodes)}
    for edge in graph.edges:  # nodes that only edges name
        for end in (edge.source, edge.target):
            names.setdefault(end, f"n{len(names)}")
    labels = {node.id: label(node) for node in graph.nodes}
    on_path = _steps_of_path(graph)
    lines = ["flowchart LR"]
    lines += [f'  {name}["{_mermaid(labels.get(node, node))}"]' for node, name in names.items()]
    for edge in graph.edges:
        arrow = "==>" if (edge.source, edge.target) in on_path else "-->"
        kind = str(edge.attributes.get("kind", ""))
        middle = f'|"{_mermaid(kind)}"|' if kind else ""
        lines.append(f"  {names[edge.source]} {arrow}{middle} {names[edge.target]}")
    marked = [names[node.id] for node in graph.nodes if node.attributes.get("on_path") is True]
    if marked:
        lines += ["  classDef path stroke:#c0392b,stroke-width:3px", f"  class {','.join(marked)} path"]
    return "\n".join([*lines, ""])


def label(node: "Node") -> str:
    """What a picture writes on a node: its id, agent and beginning where it has them."""
    attributes: Mapping[str, Any] = node.attributes
    head = " ".join(str(part) for part in (node.id, attributes.get("agent") or "") if part)
    said = " ".join(str(attributes.get("excerpt") or "").split())
    return head + (f"\n{said[:_LABEL]}" + ("…" if len(said) > _LABEL else "") if said else "")


def _steps_of_path(graph: "Graph") -> set[tuple[str, str]]:
    _, joins = marked_path(graph)
    return {(edge.source, edge.target) for edge in joins if edge is not None}


def _dot(text: str) -> str:
    """A quoted string; backslashes are doubled, since Graphviz gives some of their pairs a meaning."""
    safe = "".join(c if c.isprintable() or c == "\n" else " " for c in text)
    return '"' + safe.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _mermaid(text: str) -> str:
    """Entities for all that could mean something to Mermaid or to HTML."""
    shown = "".join(
        c if c.isalnum() or c in " .,_-…" else "<br>" if c == "\n" else f"#{ord(c)};" for c in text
    )
    return shown or " "
