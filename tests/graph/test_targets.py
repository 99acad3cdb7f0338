"""Several targets in a container: their graph, its names and its JSON form."""

import json
from collections import deque
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest

import cascade as cs
from cascade.graph.build import GraphBuilder, build_graph
from cascade.graph.serialize import graph_to_dict


@cs.task(threaded=False)
def add(x: int, y: int = 0) -> int:
    return x + y


@cs.task(threaded=False)
def generate() -> Any:
    yield 1


@cs.task(threaded=False)
def use(values: Any) -> list[int]:
    return list(values)


class Pair(NamedTuple):
    left: Any
    right: Any


@dataclass(frozen=True)
class Report:
    total: Any
    unit: str


def test_the_graph_has_the_nodes_of_all_targets_once() -> None:
    first = add(1)
    second = add(first, 2)
    graph = build_graph([second, first, second])
    assert sorted(node.id for node in graph.nodes) == sorted([first._uuid, second._uuid])
    assert graph.target_ids() == [second._uuid, first._uuid]
    assert len(graph.edges) == 1


@pytest.mark.parametrize("empty", [[], (), {}])
def test_a_container_may_be_empty(empty: Any) -> None:
    graph = build_graph(empty)
    assert (graph.nodes, graph.target_ids(), graph.target_names()) == ([], [], [])


def test_the_names_of_the_targets_are_few() -> None:
    same = build_graph([add(x) for x in range(1_000)])
    assert same.target_names() == ["add"]
    many = build_graph([cs.task(lambda: 1, name=f"load_{x}")() for x in range(8)])
    assert many.target_names() == ["load_0", "load_1", "load_2", "load_3", "load_4", "and 3 more"]
    assert build_graph([add(1), add.map(x=[1])]).target_names() == ["add", "map(add)"]


def test_a_large_list_is_built_in_steps() -> None:
    builder = GraphBuilder([add(add(x)) for x in range(100)])
    assert builder.run(limit=50) is False
    assert builder.run() is True
    assert len(builder.graph.nodes) == 200


@pytest.mark.parametrize("order", ["generator first", "generator last"])
def test_a_generator_that_a_task_reads_is_no_target(order: str) -> None:
    values = generate()
    targets = [values, use(values)]
    with pytest.raises(
        TypeError, match=r"'generate' is a generator function.*it is a target and the argument of a task"
    ):
        build_graph(targets if order == "generator first" else targets[::-1])


@pytest.mark.parametrize(
    "shape",
    [
        lambda a, b: [a, b],
        lambda a, b: (a, b, a),
        lambda a, b: {"x": a, "y": {"z": [b, 5, None]}},
        lambda a, b: Pair(a, [b]),
        lambda a, b: Report(a, "m"),
        lambda a, b: deque([a, b]),
        lambda _a, _b: [],
    ],
)
def test_a_graph_of_several_targets_survives_json(shape: Any) -> None:
    target = shape(add(1, 1), add(add(2), 3))
    text = cs.to_json(target)
    restored = cs.from_json(text)
    assert restored.target_ids() == build_graph(target).target_ids()
    assert cs.run(restored, log_level="OFF") == cs.run(target, log_level="OFF")
    assert cs.to_json(restored) == text


def test_json_with_an_unknown_target_is_refused() -> None:
    data = graph_to_dict(build_graph([add(1)]))
    data["targets"] = [{"__lazy_ref": "nowhere"}]
    with pytest.raises(ValueError, match="target of the graph"):
        cs.from_json(json.dumps(data))


def test_a_value_without_a_json_form_is_named() -> None:
    with pytest.raises(TypeError, match="The container of the targets is a object, which has no JSON form"):
        cs.to_json([add(1), object()])


def test_the_plan_and_the_diagram_have_all_targets(capsys: pytest.CaptureFixture[str]) -> None:
    targets = {"one": add(1), "many": add.map(x=[1, 2])}
    cs.dry_run(targets)
    out = capsys.readouterr().out
    assert "[1/2] add" in out
    assert "[2/2] map(add)" in out
    assert all(f'"{target._uuid}" [label=' in cs.visualize(targets) for target in targets.values())
