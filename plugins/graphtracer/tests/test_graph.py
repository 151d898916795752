"""The graph: who refers to whom, and what follows from it."""

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensd_graphtracer.conflicts import find_conflicts
from lensd_graphtracer.flow_back import trace_back
from lensd_graphtracer.formats import read_trace
from lensd_graphtracer.idg import build, measure
from lensd_graphtracer.references import Sort, find_terms
from plugins.graphtracer.tests.logs import found, plain


def keys(text: str, sort: Sort) -> set[str]:
    return {term.key for term in find_terms(text) if term.sort is sort}


def test_the_same_number_in_two_spellings_is_one_term() -> None:
    assert (
        keys("It costs $1,250.50 today.", Sort.NUMBER) == keys("1250.5 was paid", Sort.NUMBER) == {"n:1250.5"}
    )


def test_small_counts_are_no_evidence() -> None:
    assert keys("Step 3 of 7", Sort.NUMBER) == set()


def test_a_quoted_title_meets_the_same_title_unquoted() -> None:
    assert keys('see "The Harbour Museum"', Sort.QUOTE) & keys("at The Harbour Museum", Sort.NAME)


@pytest.mark.parametrize(
    ("sort", "text"),
    [
        (Sort.URL, "https://a.org/x?y=1"),
        (Sort.QUOTE, "quoted words"),
        (Sort.NAME, "Mary Ann Smith"),
        (Sort.NUMBER, "12.5%"),
        (Sort.IDENTIFIER, "my_value"),
    ],
)
def test_a_term_is_where_it_says(sort: Sort, text: str) -> None:
    whole = 'Visit https://a.org/x?y=1. and "quoted words" by Mary Ann Smith, 12.5% of my_value'
    assert text in [whole[term.start : term.end] for term in find_terms(whole) if term.sort is sort]


def test_a_number_used_twenty_steps_later_is_an_edge() -> None:
    said = [("Clerk", "The vault opens with 48213.")]
    said += [
        ("Cook", f"Dish {word} is on the table now.")
        for word in ["soup", "bread", "rice", "fish", "beans", "tea", "milk", "cake", "plum"]
    ]
    said += [
        ("Guard", f"Gate {word} is closed tonight.")
        for word in ["north", "south", "east", "west", "upper", "lower", "inner", "outer", "old", "new"]
    ]
    said += [("Runner", "I typed 48213 and went in."), ("Runner", "The vault is open, I typed 48213.")]
    edges = found(plain(*said)).edges
    assert edges[0, 20]["kind"] == "shared_number"
    assert edges[0, 20]["evidence"] == "48213"


def test_an_address_is_an_edge_to_the_answer() -> None:
    log = plain(
        ("A", "Look it up."), ("B", "Nothing here."), ("C", "Here it is."), ("A", "All done, thank you.")
    )
    log["steps"][0]["to"] = "C"
    edges = found(log).edges
    assert edges[0, 2]["kind"] == "address"


def test_a_tools_output_depends_on_whoever_spoke_before_it() -> None:
    log = plain(
        ("A", "ask nobody"),
        ("Coder", "```python\nprint(7 * 6)\n```"),
        ("Computer_terminal", "42"),
        ("A", "So 42."),
    )
    edges = found(log).edges
    assert edges[1, 2]["kind"] == "execution"


def test_addresses_in_a_circle_leave_the_graph_acyclic() -> None:
    log = plain(*[(agent, f"pass it on, item {i + 10}") for i, agent in enumerate("ABCABCABC")])
    for step, to in zip(log["steps"], "BCABCABCA", strict=True):
        step["to"] = to
    graph = nx.DiGraph(list(found(log).edges))
    assert nx.is_directed_acyclic_graph(graph)


def test_a_step_nobody_refers_to_is_no_node() -> None:
    log = plain(
        ("A", "The price is 12.50 for adults."), ("B", "zzz qqq"), ("A", "So the price is 12.50 for adults.")
    )
    assert set(found(log).nodes) == {0, 2}


def test_the_earliest_and_latest_mention_share_the_credit() -> None:
    log = plain(("A", "code 48213"), ("B", "again 48213"), ("C", "ask nobody"), ("D", "finally 48213"))
    edges = found(log).edges
    assert {source for source, target in edges if target == 3} == {0, 1}


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.text(max_size=60)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_edges_go_forward_and_origins_add_up(said: list[tuple[str, str]]) -> None:
    log = plain(*said, ("A", "the end is 12345"))
    graph = build(read_trace(log))
    measures = measure([r.step for r in graph.readings], graph.edges())
    assert all(edge.source < edge.target for edge in graph.edges())
    assert abs(sum(trace_back(graph.readings, measures.terminal).values()) - 1.0) < 1e-9
    for edge in graph.edges():
        target = next(r.step for r in graph.readings if r.step.index == edge.target)
        assert 0 <= edge.start <= edge.end <= len(target.content)


def test_impact_is_half_degree_and_half_betweenness() -> None:
    log = plain(("A", "alpha 1111"), ("B", "1111 gives 2222"), ("C", "2222 gives 3333"), ("D", "3333 ends"))
    nodes = found(log).nodes
    graph = nx.DiGraph([(0, 1), (1, 2), (2, 3)])
    between = nx.betweenness_centrality(graph, normalized=False)
    for v in graph:
        expected = 0.5 * graph.out_degree(v) + 0.5 * between[v] / max(between.values())
        assert abs(nodes[v]["impact"] - expected) < 1e-12
    assert [v for v in nodes if nodes[v]["observation"]] == [0]


def test_a_contradiction_that_meets_is_a_conflict() -> None:
    log = plain(
        ("A", "The adult price is 12.50."),
        ("B", "The adult price is 14.50."),
        ("C", "Between 12.50 and 14.50 I take 14.50."),
    )
    graph = build(read_trace(log))
    (conflict,) = find_conflicts(graph.readings, graph.edges())
    assert (conflict.key, conflict.first.value, conflict.second.value, conflict.meet) == (
        "adult price",
        "12.50",
        "14.50",
        2,
    )


def test_a_contradiction_that_never_meets_is_none() -> None:
    log = plain(
        ("A", "The adult price is 12.50."),
        ("B", "zzz"),
        ("C", "The adult price is 14.50."),
        ("D", "12.50 it was"),
    )
    graph = build(read_trace(log))
    readings = graph.readings
    readings[2].parents = ()
    readings[3].parents = tuple(e for e in readings[3].parents if e.source == 0)
    assert find_conflicts(readings, graph.edges()) == []
