from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascade as cs
from cascade.graph.build import build_graph
from cascade.graph.model import (
    ArgKind,
    Graph,
    Node,
    argument_key,
    join_arguments,
    split_arguments,
)


@cs.task
def load(x: Any) -> Any:
    return x


@cs.task
def collect(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


names = (
    st.integers(0, 5).map(str)
    | st.integers(0, 5).map(lambda n: f"**{n}")
    | st.sampled_from(["2024", "007", "*0", "****1", "²", "\u0661", "x", "self", "_condition", "", "1" * 5_000])
    | st.text(max_size=3)
)
calls = st.tuples(st.lists(st.integers(), max_size=4).map(tuple), st.dictionaries(names, st.integers(), max_size=5))


@given(calls)
def test_a_call_is_joined_and_split_again(call: tuple[Any, Any]) -> None:
    args, kwargs = call
    inputs = join_arguments(args, kwargs)
    assert split_arguments(inputs, len(args)) == (list(args), kwargs)
    assert split_arguments(inputs, None) == (list(args), kwargs)


@given(calls, calls)
def test_different_calls_have_different_inputs(first: tuple[Any, Any], second: tuple[Any, Any]) -> None:
    assert (join_arguments(*first) == join_arguments(*second)) == (first == second)


def test_only_a_keyword_that_equals_a_position_is_marked() -> None:
    assert [argument_key(name, 1) for name in ("x", "0", "1", "2", "2024", "01", "-1", "²")] == [
        *("x", "**0", "**1", "2", "2024", "01", "-1", "²")
    ]


@pytest.mark.parametrize("wrap", [lambda x: x, load, lambda x: [load(x)]], ids=["literal", "lazy", "nested"])
def test_edges_and_literals_keep_both_kinds_apart(wrap: Any) -> None:
    graph = build_graph(collect(wrap(1), **{"0": wrap(2), "2024": wrap(3)}))
    node = graph.nodes[0]
    found = {edge.key: (edge.arg_name, edge.arg_kind) for edge in graph.edges}
    expected = {
        "0": ("0", ArgKind.POSITIONAL),
        "**0": ("0", ArgKind.KEYWORD),
        "2024": ("2024", ArgKind.KEYWORD),
    }
    assert node.positional == 1
    assert {**dict.fromkeys(node.literal_inputs), **found}.keys() == expected.keys()
    assert all(found[key] == expected[key] for key in found)


def test_json_has_the_kind_of_each_argument() -> None:
    data = cs.graph.serialize.graph_to_dict(build_graph(collect(load(1), **{"0": load(2)}).run_if(load(3))))
    assert [(e["arg_name"], e.get("arg_kind")) for e in data["edges"]] == [
        ("0", "positional"),
        ("0", "keyword"),
        ("_condition", None),
    ]
    assert data["nodes"][0]["positional"] == 1


def test_json_without_the_kinds_is_restored() -> None:
    data = cs.graph.serialize.graph_to_dict(build_graph(collect(load(1), "b", key="c")))
    for item in (*data["nodes"], *data["edges"]):
        item.pop("arg_kind", None)
        item.pop("positional", None)
    graph: Graph = cs.graph.serialize.graph_from_dict(data)
    assert (graph.edges[0].key, graph.edges[0].arg_kind, graph.nodes[0].positional) == ("0", None, None)
    assert graph.nodes[0].literal_inputs == {"1": "b", "key": "c"}


def test_a_node_made_by_hand_needs_no_count() -> None:
    assert Node("id", "name", literal_inputs={"0": 1}).positional is None


def test_the_graphviz_text_distinguishes_them() -> None:
    dot = cs.visualize(collect(load(1), **{"0": load(2)}))
    assert '[label="0"]' in dot
    assert '[label="**0"]' in dot
