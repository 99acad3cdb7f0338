from dataclasses import dataclass
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import pytest

import cascade as cs
from cascade.graph.build import GraphBuilder, build_graph
from cascade.graph.model import Edge, EdgeType, Graph, Node
from cascade.spec.lazy_types import LazyResult


@cs.task
def one() -> int:
    return 1


@cs.task
def add(x: int, y: int = 0) -> int:
    return x + y


@cs.task
def collect(*values: Any) -> int:
    return len(values)


def edges_of(graph: Graph) -> set[tuple[str, str, str, str]]:
    return {(e.source.name, e.target.name, e.arg_name, e.edge_type.name) for e in graph.edges}


def test_arguments_are_named_by_position_or_keyword() -> None:
    graph = build_graph(add(one(), y=one()))
    assert edges_of(graph) == {("one", "add", "0", "DATA"), ("one", "add", "y", "DATA")}


def test_ids_are_the_lazy_results_own_so_that_two_builds_agree() -> None:
    target = add(one())
    assert [n.id for n in build_graph(target).nodes] == [n.id for n in build_graph(target).nodes]
    assert build_graph(target).nodes[0].id == target._uuid


def test_a_result_used_twice_is_one_node() -> None:
    shared = one()
    assert len(build_graph(add(shared, shared)).nodes) == 2


def test_literals_are_kept_by_name() -> None:
    (node,) = build_graph(add(1, y=2)).nodes
    assert node.literal_inputs == {"0": 1, "y": 2}


def test_conditions_constraints_and_routes_are_edges() -> None:
    target = add(cs.Router(one(), {"a": one(), "b": one()})).run_if(one()).with_constraints(cpu=one(), gpu=1)
    found = edges_of(build_graph(target))
    assert {(name, kind) for _, _, name, kind in found} == {
        ("0", "DATA"),
        ("_route_a", "ROUTER_ROUTE"),
        ("_route_b", "ROUTER_ROUTE"),
        ("_condition", "CONDITION"),
        ("cpu", "CONSTRAINT"),
    }


def test_each_call_has_its_own_literals() -> None:
    nodes = build_graph(collect(one(), add(1, y=2), add(one(), y=3))).nodes
    assert sorted((n.name, sorted(n.literal_inputs.items())) for n in nodes) == [
        ("add", [("0", 1), ("y", 2)]),
        ("add", [("y", 3)]),
        ("collect", []),
        ("one", []),
        ("one", []),
    ]


def test_a_call_with_many_positional_arguments_has_a_name_for_each() -> None:
    names = [edge.arg_name for edge in build_graph(collect(*[one() for _ in range(40)])).edges]
    assert names == [str(position) for position in range(40)]


def test_the_selectors_edge_carries_the_router() -> None:
    router = cs.Router(one(), {"a": one()})
    assert [e.router for e in build_graph(add(router)).edges if e.edge_type is EdgeType.DATA] == [router]


def test_maps_are_one_node_with_their_policies() -> None:
    target = add.map(x=[1, 2], y=one()).with_retry(2).with_constraints(cpu=one())  # type: ignore[arg-type]
    graph = build_graph(target)
    node = graph.nodes[0]
    assert (node.name, node.node_type, node.retry_policy) == ("map(add)", "map", target._retry_policy)
    assert node.literal_inputs == {"x": [1, 2]}
    assert ("one", "map(add)", "cpu", "CONSTRAINT") in edges_of(graph)


def test_params_are_task_nodes_with_their_name_as_literal() -> None:
    (node,) = build_graph(cs.Param("p")).nodes
    assert (node.name, node.node_type, node.literal_inputs) == ("_get_param_value", "task", {"name": "p"})


@dataclass
class Box:
    content: Any


class Pair(NamedTuple):
    left: Any
    right: Any


@pytest.mark.parametrize(
    "wrap", [lambda x: [x], lambda x: (x,), lambda x: {"k": [x]}, Box, lambda x: Pair(1, Box([x]))]
)
def test_nested_results_are_dependencies(wrap: Any) -> None:
    graph = build_graph(add(wrap(one())))
    assert edges_of(graph) == {("one", "add", "0", "IMPLICIT")}


def test_a_literal_may_contain_itself() -> None:
    loop: Any = [one()]
    loop.append(loop)
    assert len(build_graph(add(loop)).nodes) == 2


def test_a_chain_longer_than_the_stack_builds() -> None:
    target = one()
    for _ in range(50_000):
        target = add(target)
    graph = build_graph(target)
    assert (len(graph.nodes), len(graph.edges)) == (50_001, 50_000)


@pytest.mark.parametrize("target", [1, one, None, "x", object()])
def test_only_lazy_results_build(target: object) -> None:
    with pytest.raises(TypeError, match="call a task"):
        build_graph(target)


async def coroutine() -> None: ...


class Hostile:
    """A value whose repr must not be called."""

    def __repr__(self) -> str:
        raise AssertionError("repr of a value")


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: {one()}, "a set: give several targets in a list, a tuple or a dict"),
        (lambda: (each for each in [one()]), "a generator: give several targets in a list, a tuple or a dict"),
        (lambda: [{one()}], "The target: a lazy result is in a set"),
        (lambda: [one(), one], r"a list with a task: call a task to get a lazy result, one\(\.\.\.\)"),
        (lambda: {"a": one}, "a dict with a task"),
        (lambda: [[cs.Router(one(), {})]], "a list with a Router: it is an argument only"),
        (
            lambda: (cs.from_json(cs.to_json(one())),),
            "a tuple with a graph in a container: run it as a target of its own",
        ),
        (lambda: one, r"a task: .*one\(\.\.\.\)"),
        (lambda: coroutine, r"a function: decorate coroutine with @cs\.task"),
        (lambda: cs.Router(one(), {}), "a Router: it is an argument only"),
        (lambda: cs.inject("db"), r"a resource: .*cs\.inject"),
        (lambda: cs.ParamSpec("p"), r"a ParamSpec, which only describes an input: use cs\.Param"),
        (lambda: None, "None: .*return it from the function that builds the workflow"),
        (Hostile, "a Hostile: call a task"),
        (lambda: [Hostile(), cs.inject("db")], "a list with a resource"),
    ],
)
@pytest.mark.parametrize("entry", [cs.run, cs.dry_run, cs.visualize, build_graph])
def test_another_target_is_refused_with_its_fix(entry: Any, make: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        entry(make())


def test_a_coroutine_as_target_is_refused() -> None:
    target = coroutine()
    with pytest.raises(TypeError, match="a coroutine: decorate its function"):
        build_graph(target)
    target.close()


def test_a_condition_that_is_not_a_lazy_result_is_named() -> None:
    with pytest.raises(TypeError, match=r"'add'.*_condition.*True"):
        build_graph(add(1).run_if(True))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_functions_are_read_when_the_graph_is_built() -> None:
    replaceable = cs.task(lambda: 1, name="x")
    target = replaceable()
    replaceable.func = lambda: 2
    assert build_graph(target).nodes[0].callable_obj() == 2


def test_nodes_are_added_once_per_id_and_hash_by_it() -> None:
    graph = Graph([Node("a", "a")])
    graph.add_node(Node("a", "other"))
    graph.add_node(Node("b", "b"))
    graph.add_edge(Edge(graph.nodes[0], graph.nodes[1], "0"))
    assert [n.name for n in graph.nodes] == ["a", "b"]
    assert {Node("a", "x")} == {Node("a", "y")}
    assert graph.edges[0].edge_type is EdgeType.DATA


def test_mocks_pass_for_lazy_results() -> None:
    assert isinstance(MagicMock(spec=LazyResult), LazyResult)


@pytest.mark.parametrize("target", [collect([one() for _ in range(9)]), collect(*[one() for _ in range(9)])])
def test_a_build_stops_at_its_limit_between_the_arguments_of_one_call_and_continues(target: LazyResult[int]) -> None:
    builder = GraphBuilder(target)
    assert not builder.run(limit=5)
    assert len(builder.graph.nodes) == 5
    assert builder.run()
    assert [n.id for n in builder.graph.nodes] == [n.id for n in build_graph(target).nodes]
    assert [(e.source.id, e.arg_name) for e in builder.graph.edges] == [
        (e.source.id, e.arg_name) for e in build_graph(target).edges
    ]
