"""The marked path of a graph drawn for a terminal, one node below the other."""

from rich.text import Text

from lensd_client.heatmap import shorten, visible
from lensd_client.results import Edge, Graph, Node
from lensd_client.results.graph_path import marked_path

_WIDTH = 90


def draw_path(graph: Graph) -> Text | None:
    """The path from its first node to its last; ``None`` where the graph has none marked."""
    nodes, joins = marked_path(graph)
    if not nodes:
        return None
    drawn = Text("path\n", style="bold")
    for i, node in enumerate(nodes):
        if i:
            drawn.append(f"  │ {_link(joins[i - 1])}\n", style="dim not bold")
        drawn.append("  ● " if i in (0, len(nodes) - 1) else "  ○ ", style="red not bold")
        drawn.append_text(_said(node))
        drawn.append("\n")
    drawn.rstrip()
    return drawn


def _said(node: Node) -> Text:
    attributes = node.attributes
    line = Text(visible(node.id), style="bold")
    if agent := attributes.get("agent"):
        line.append(f" {visible(str(agent))}", style="cyan not bold")
    if role := attributes.get("role"):
        line.append(f" [{visible(str(role))}]", style="red not bold")
    if excerpt := attributes.get("excerpt"):
        line.append(f"  {shorten(str(excerpt), _WIDTH)}", style="default not bold")
    return line


def _link(edge: Edge | None) -> str:
    if edge is None:
        return ""
    kind = visible(str(edge.attributes.get("kind") or "").replace("_", " "))
    said = str(edge.attributes.get("evidence") or "")
    return f"{kind} {shorten(said, 60)!r}" if said else kind
