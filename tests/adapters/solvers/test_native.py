from typing import Any

import pytest

import cascade as cs
from cascade.adapters.solvers.native import NativeSolver
from cascade.graph.build import build_graph
from cascade.graph.model import Edge, Graph, Node


def graph_of(names: str, *edges: str) -> Graph:
    nodes = {name: Node(f"id-{name}", name) for name in names}
    return Graph(
        list(nodes.values()), [Edge(nodes[source], nodes[target], "0") for source, target in map(tuple, edges)]
    )


def plan(graph: Graph) -> list[str]:
    return ["".join(node.name for node in stage) for stage in NativeSolver().resolve(graph)]


def test_stages_need_only_earlier_ones_and_are_sorted_by_name() -> None:
    assert plan(graph_of("dcba", "ab", "ac", "bd", "cd")) == ["a", "bc", "d"]


def test_a_node_without_edges_is_in_the_first_stage() -> None:
    assert plan(graph_of("ba")) == ["ab"]
    assert plan(graph_of("")) == []


def test_one_source_for_two_arguments_counts_twice() -> None:
    assert plan(graph_of("ab", "ab", "ab")) == ["a", "b"]


@pytest.mark.parametrize(
    ("graph", "members"),
    [
        (graph_of("ab", "ab", "ba"), "(a -> b -> a|b -> a -> b)"),
        (graph_of("a", "aa"), "a -> a"),
        (graph_of("xabcy", "xa", "ab", "bc", "ca", "cy"), "(a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c)"),
    ],
    ids=["two", "itself", "with a way in and a way out"],
)
def test_a_cycle_is_named_by_its_members_in_order(graph: Graph, members: str) -> None:
    with pytest.raises(ValueError, match=f"cycle: {members}$"):
        NativeSolver().resolve(graph)


@pytest.mark.parametrize("end", ["source", "target"])
def test_an_edge_to_a_node_that_is_not_in_the_graph_is_named(end: str) -> None:
    inside, outside = Node("i", "inside"), Node("o", "outside")
    ends: Any = {"source": inside, "target": inside, end: outside}
    graph = Graph([inside], [Edge(**ends, arg_name="x")])
    with pytest.raises(ValueError, match=r"'outside'.*not in the graph"):
        NativeSolver().resolve(graph)


def test_a_chain_may_be_longer_than_the_stack() -> None:
    target = cs.task(lambda: 0, name="first")()
    step = cs.task(lambda x: x, name="step")
    for _ in range(20_000):
        target = step(target)
    assert len(NativeSolver().resolve(build_graph(target))) == 20_001
