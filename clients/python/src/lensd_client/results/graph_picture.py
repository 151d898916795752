"""A graph as one HTML page: lanes by agent, time to the right, the marked path in red.

The page asks for nothing from anywhere and runs no script; hovering shows a node's text.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from lensd_client.results.graph_formats import label
from lensd_client.results.graph_path import marked_path
from lensd_client.results.html import escape

if TYPE_CHECKING:
    from lensd_client.results.graph import Edge, Graph, Node

_STEP, _LANE, _LEFT, _TOP, _RADIUS = 46, 64, 170, 50, 13
_CSS = (
    "body{font:14px system-ui,sans-serif;margin:1.5em;color:#222}svg text{font:11px system-ui,sans-serif}"
    ".edge{fill:none;stroke:#999;opacity:.5}.edge.path{stroke:#c0392b;stroke-width:2.5;opacity:1}"
    ".node{stroke:#555}.node.path{stroke:#c0392b;stroke-width:3}.lane{stroke:#eee}"
)


def to_html(graph: "Graph") -> str:
    """A whole page. Nodes are darker with ``suspicion`` and larger with ``impact``, where they have them."""
    lanes = _lanes(graph)
    place = {
        node.id: (_LEFT + i * _STEP, _TOP + lanes[_agent(node)] * _LANE) for i, node in enumerate(graph.nodes)
    }
    nodes, joins = marked_path(graph)
    path = {(edge.source, edge.target) for edge in joins if edge is not None}
    width, height = _LEFT + len(graph.nodes) * _STEP + 30, _TOP + len(lanes) * _LANE
    parts = [
        f'<line class="lane" x1="10" x2="{width}" y1="{_TOP + k * _LANE}" y2="{_TOP + k * _LANE}"/>'
        f'<text x="10" y="{_TOP + k * _LANE - 6}">{escape(agent[:24])}</text>'
        for agent, k in lanes.items()
    ]
    parts += [_edge(e, place, (e.source, e.target) in path) for e in graph.edges if _known(e, place)]
    parts += [_node(node, place[node.id], _most_suspicious(graph)) for node in graph.nodes]
    title = escape(graph.title or graph.name or "graph")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_CSS}</style></head>'
        f"<body><h1>{title}</h1><p>{escape(f'{len(graph.nodes)} nodes, {len(graph.edges)} edges')}</p>"
        f'<div style="overflow-x:auto"><svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}">'
        f"{''.join(parts)}</svg></div>{_story(nodes, joins)}</body></html>\n"
    )


def _lanes(graph: "Graph") -> dict[str, int]:
    return {agent: k for k, agent in enumerate(dict.fromkeys(map(_agent, graph.nodes)))}


def _agent(node: "Node") -> str:
    return str(node.attributes.get("agent") or "")


def _known(edge: "Edge", place: Mapping[str, tuple[int, int]]) -> bool:
    return edge.source in place and edge.target in place


def _edge(edge: "Edge", place: Mapping[str, tuple[int, int]], on_path: bool) -> str:
    (x1, y1), (x2, y2) = place[edge.source], place[edge.target]
    lift = min(40, 10 + abs(x2 - x1) // 6)
    hint = " ".join(str(edge.attributes.get(name) or "") for name in ("kind", "evidence")).strip()
    return (
        f'<path class="edge{" path" if on_path else ""}" d="M{x1},{y1} Q{(x1 + x2) // 2},{(y1 + y2) // 2 - lift} {x2},{y2}">'
        f"<title>{escape(f'{edge.source} → {edge.target} {hint}')}</title></path>"
    )


def _node(node: "Node", at: tuple[int, int], most: float) -> str:
    share = _number(node, "suspicion") / most if most else 0.0
    size = _RADIUS * (0.6 + 0.4 * min(1.0, _number(node, "impact")))
    light = round(97 - 42 * min(1.0, max(0.0, share)))
    mark = " path" if node.attributes.get("on_path") is True else ""
    return (
        f'<circle class="node{mark}" cx="{at[0]}" cy="{at[1]}" r="{size:.1f}" fill="hsl(15,85%,{light}%)">'
        f"<title>{escape(label(node))}</title></circle>"
        f'<text x="{at[0]}" y="{at[1] + 4}" text-anchor="middle">{escape(node.id[:5])}</text>'
    )


def _number(node: "Node", name: str) -> float:
    value = node.attributes.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _most_suspicious(graph: "Graph") -> float:
    return max((_number(node, "suspicion") for node in graph.nodes), default=0.0)


def _story(nodes: "list[Node]", joins: "list[Edge | None]") -> str:
    """The path in words below the picture."""
    if not nodes:
        return ""
    items: list[str] = []
    for node, into in zip(nodes, [None, *joins], strict=True):
        why = ""
        if into is not None:
            said = str(into.attributes.get("evidence") or "")
            why = f"<small>{escape(into.attributes.get('kind') or '')} {escape(said)}</small> → "
        items.append(f"<li>{why}{escape(label(node))}</li>")
    return f"<h2>Path</h2><ol>{''.join(items)}</ol>"
