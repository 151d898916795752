"""Graphs in other tools' languages and in pictures: complete, with the path, and safe to open."""

import io
import re
from html.parser import HTMLParser

import networkx as nx
import pytest
from rich.console import Console

from lensd_client.render import render
from lensd_client.results import Edge, Graph, Node
from lensd_client.results.graph_path import marked_path

EVIL = '"]; } <script>alert(1)</script> \\ end\nnext\x1b[31m'


def node(name: str, on_path: bool = False, **more: object) -> Node:
    return Node(name, {"agent": f"Agent {name}", "excerpt": f"says {name}", "on_path": on_path, **more})


def edge(source: str, target: str, **more: object) -> Edge:
    return Edge(source, target, {"kind": "shared_number", "evidence": "48213", **more})


@pytest.fixture
def graph() -> Graph:
    nodes = (
        node("4", True, role="symptom"),
        node("1", True, suspicion=0.9, role="root cause"),
        node("2"),
        node("3", True),
    )
    return Graph(nodes, (edge("3", "4"), edge("1", "3"), edge("1", "2")), "idg", "dependencies")


def test_the_path_follows_its_edges_whatever_the_order_of_nodes(graph: Graph) -> None:
    nodes, joins = marked_path(graph)
    assert [n.id for n in nodes] == ["1", "3", "4"]
    assert [(e.source, e.target) for e in joins if e] == [("1", "3"), ("3", "4")]


def test_a_marked_cycle_still_gives_an_answer() -> None:
    ring = Graph((node("a", True), node("b", True)), (edge("a", "b"), edge("b", "a")))
    assert [n.id for n in marked_path(ring)[0]] == ["a", "b"]


def test_networkx_gets_every_node_edge_and_attribute(graph: Graph) -> None:
    made = graph.to_networkx()
    assert isinstance(made, nx.DiGraph)
    assert set(made.edges) == {("3", "4"), ("1", "3"), ("1", "2")}
    assert made.nodes["1"]["suspicion"] == 0.9
    assert made.edges["1", "3"]["evidence"] == "48213"


def test_dot_marks_the_path(graph: Graph) -> None:
    lines = graph.to_dot().splitlines()
    marked = {line.split("[")[0].strip() for line in lines if "penwidth" in line}
    assert marked == {'"1"', '"3"', '"4"', '"1" -> "3"', '"3" -> "4"'}
    assert len([line for line in lines if "->" in line]) == 3


def test_mermaid_marks_the_path(graph: Graph) -> None:
    text = graph.to_mermaid()
    assert text.startswith("flowchart LR\n")
    assert text.count("==>") == 2
    assert text.count("-->") == 1
    assert "class n0,n1,n3 path" in text


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs


def test_the_page_draws_everything_and_asks_for_nothing(graph: Graph) -> None:
    page = _Page()
    page.feed(graph.to_html())
    assert page.tags.count("circle") == 4
    assert page.tags.count("path") == 3
    assert "script" not in page.tags
    assert not {name for name, _ in page.attributes} & {"src", "href", "onload", "onclick"}
    assert ("class", "edge path") in page.attributes


def test_text_from_a_server_cannot_break_out() -> None:
    evil = Graph(
        (Node(EVIL, {"agent": EVIL, "excerpt": EVIL, "on_path": True}),),
        (Edge(EVIL, EVIL, {"kind": EVIL}),),
        EVIL,
        EVIL,
    )
    page = _Page()
    page.feed(evil.to_html())
    assert "script" not in page.tags
    # Every quote of the DOT text that is not escaped begins or ends a string: they come in pairs a line.
    for line in evil.to_dot().splitlines():
        assert len(re.findall(r'(?<!\\)(?:\\\\)*"', line)) % 2 == 0, line
    assert "<script" not in evil.to_mermaid()
    assert '"]; }' not in evil.to_mermaid()
    assert "\x1b" not in evil.to_dot()


def test_the_terminal_shows_the_path_and_no_control_sequences(graph: Graph) -> None:
    console = Console(width=100, record=True, color_system=None, file=io.StringIO())
    console.print(render(graph))
    text = console.export_text()
    shown = [line.split()[1] for line in text.splitlines() if line.startswith(("  ●", "  ○"))]
    assert shown == ["1", "3", "4"]
    assert "[root cause]" in text
    assert "shared number '48213'" in text


def test_an_empty_graph_is_drawn_too() -> None:
    empty = Graph((), ())
    assert empty.to_dot()
    assert empty.to_mermaid()
    assert "0 nodes" in empty.to_html()
