"""A graph that `from_json` returns is a target."""

import asyncio
import json
from typing import Any

import pytest

import cascade as cs
from cascade.graph.build import build_graph
from cascade.graph.model import Graph
from cascade.graph.serialize import graph_to_dict
from cascade.runtime.engine import run_nested
from cascade.testing import MemoryConnector


@cs.task
def add(x: Any, y: Any = 0) -> Any:
    return x + y


attempts: list[int] = []


@cs.task
def fails_once(x: int) -> int:
    attempts.append(x)
    if len(attempts) == 1:
        raise ConnectionError("once")
    return x


@cs.task
def is_true(x: bool) -> bool:
    return x


@cs.task(threaded=False)
def add_all(*values: int, items: list[int]) -> int:
    return sum(values) + sum(items)


def workflow() -> Any:
    """Return a workflow with an input, a map, a router, a condition, a lazy amount, a retry and a label."""
    routed = cs.Router(cs.Param("mode", default="a"), {"a": add(1), "b": add(2)})
    mapped = add.map(x=add([1], [2]), y=[10, 20]).with_constraints(cpu=add(1))
    retried = fails_once(3).with_retry(2, delay=0).run_if(is_true(True)).with_label("third")
    return add_all(add(routed), retried, cs.Param("count", 5, int), items=mapped)


@pytest.fixture
def restored() -> Graph:
    attempts.clear()
    return cs.from_json(cs.to_json(workflow()))


def test_it_runs_with_params_resources_and_messages(restored: Graph) -> None:
    connector = MemoryConnector()
    options: Any = {"system_resources": {"cpu": 1}, "connector": connector, "log_level": "OFF"}
    assert cs.run(restored, {"mode": "b", "count": 7}, **options) == 2 + 3 + 7 + 11 + 22
    assert attempts == [3, 3]
    bodies = [message.payload["body"] for message in connector.messages]
    assert {body["metadata"].get("label") for body in bodies if body.get("task_name") == "fails_once"} == {"third"}
    assert cs.run(restored, log_level="OFF") == 1 + 3 + 5 + 11 + 22


async def test_it_runs_inside_an_event_loop_and_inside_a_task(restored: Graph) -> None:
    @cs.task
    async def outer() -> int:
        value: int = await run_nested(restored)
        return value

    assert await cs.run_async(restored, log_level="OFF") == await cs.run_async(outer(), log_level="OFF")


async def test_it_runs_several_times_at_once(restored: Graph) -> None:
    runs = [cs.run_async(restored, {"count": count}, log_level="OFF") for count in range(8)]
    assert await asyncio.gather(*runs) == [1 + 3 + count + 11 + 22 for count in range(8)]


def test_the_text_of_a_restored_graph_is_the_same(restored: Graph) -> None:
    text = cs.to_json(restored)
    assert cs.to_json(cs.from_json(text)) == text
    assert cs.visualize(restored) == cs.visualize(cs.from_json(text))


def test_the_plan_of_a_restored_graph_is_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    target = workflow()
    cs.dry_run(target)
    shown = capsys.readouterr().out
    cs.dry_run(cs.from_json(cs.to_json(target)))
    assert capsys.readouterr().out == shown


def test_a_skipped_target_is_named() -> None:
    with pytest.raises(cs.DependencyMissingError, match="Task 'add' was skipped: its condition 'is_true' was false"):
        cs.run(cs.from_json(cs.to_json(add(1).run_if(is_true(False)))), log_level="OFF")


def test_the_target_is_the_node_that_no_other_node_uses() -> None:
    target = add(add(1), 2)
    data = graph_to_dict(build_graph(target))
    assert "target" not in data
    data["nodes"].reverse()
    restored = cs.from_json(json.dumps(data))
    assert restored.require_target().id == target._uuid
    assert cs.run(restored, log_level="OFF") == 3


def test_another_target_is_stored() -> None:
    inner = add(1)
    graph = build_graph(add(inner, 2))
    graph.target = next(node for node in graph.nodes if node.id == inner._uuid)
    text = cs.to_json(graph)
    assert json.loads(text)["target"] == inner._uuid
    assert cs.to_json(cs.from_json(text)) == text
    assert cs.run(cs.from_json(text), log_level="OFF") == 1


def test_a_graph_with_several_ends_needs_a_target() -> None:
    one, other = build_graph(add(1)), build_graph(is_true(True))
    both = Graph([*one.nodes, *other.nodes])
    expected = rf"2 nodes that no other node uses: 'add' \({one.nodes[0].id}\), 'is_true' \(.*the key 'target'"
    with pytest.raises(ValueError, match=expected):
        cs.run(cs.from_json(cs.to_json(both)), log_level="OFF")
    both.target = other.nodes[0]
    assert cs.run(cs.from_json(cs.to_json(both)), log_level="OFF") is True


def test_a_graph_without_nodes_has_no_target() -> None:
    with pytest.raises(ValueError, match="0 nodes that no other node uses: none"):
        cs.run(Graph(), log_level="OFF")


def test_a_stored_target_must_be_a_node() -> None:
    data = {**graph_to_dict(build_graph(add(1))), "target": "unknown"}
    with pytest.raises(ValueError, match="The target of the graph is 'unknown', but the graph has no such node"):
        cs.from_json(json.dumps(data))


def test_a_function_of_the_started_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def load() -> None: ...

    monkeypatch.setattr(load, "__module__", "__main__")
    with pytest.raises(ValueError, match=r"^Task 'load': .*load is in __main__, .*move the object to a module"):
        cs.to_json(cs.task(load)())


def test_a_large_graph_runs() -> None:
    target = add(0, 1)
    for _ in range(1_500):
        target = add(target, 1)
    assert cs.run(cs.from_json(cs.to_json(target)), log_level="OFF") == 1_501
