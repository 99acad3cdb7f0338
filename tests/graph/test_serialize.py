import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascade as cs
from cascade.graph.build import build_graph
from cascade.graph.model import Graph
from cascade.graph.serialize import graph_from_dict, graph_to_dict
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine


@cs.task
def add(x: Any, y: Any = 0) -> Any:
    return x + y


def plain(x: int) -> int:
    return x


@dataclass
class Box:
    content: Any


def round_trip(target: Any) -> Any:
    return cs.from_json(cs.to_json(build_graph(target)))


def test_the_keys_are_the_contracts() -> None:
    target = add(1, y=add(2)).with_retry(2, delay=0.5).with_constraints(cpu=1)
    data = json.loads(cs.to_json(build_graph(target)))
    assert set(data) == {"nodes", "edges", "routers"}
    node, edge = data["nodes"][0], data["edges"][0]
    assert node["id"] == target._uuid
    assert (node["name"], node["node_type"], node["literal_inputs"]) == ("add", "task", {"0": 1})
    assert node["callable"] == {"module": __name__, "qualname": "add"}
    assert node["retry_policy"] == {"max_attempts": 2, "delay": 0.5, "backoff": 1.0}
    assert node["constraints"] == {"cpu": 1}
    assert (edge["target_id"], edge["arg_name"], edge["edge_type"]) == (target._uuid, "y", "DATA")


def test_everything_survives_the_round_trip() -> None:
    amount = add(1)
    router = cs.Router(cs.Param("mode", default="a"), {"a": add(1), "b": add(2)})
    target = add(router, y=add.map(x=[1, 2]).with_constraints(cpu=amount)).run_if(add(3))
    before = build_graph(target)
    after = cs.from_json(cs.to_json(before))
    assert graph_to_dict(after) == graph_to_dict(before)
    mapped = next(node for node in after.nodes if node.node_type == "map")
    assert mapped.mapping_factory is not None
    assert mapped.mapping_factory.name == "add"
    assert mapped.constraints is not None
    assert mapped.constraints.requirements["cpu"]._uuid == amount._uuid


def test_a_task_is_unwrapped_to_its_function() -> None:
    assert round_trip(add(1)).nodes[0].callable_obj is add.func


async def test_a_restored_graph_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    router = cs.Router(cs.Param("mode", default="b"), {"a": add(1), "b": add(2)})
    target = cs.task(plain)(add(router, y=cs.task(sum_of)([add(3), 4])))
    restored: Graph = round_trip(target)

    async def graph_of(_: Any) -> Graph:
        return restored

    monkeypatch.setattr("cascade.runtime.engine._graph_of", graph_of)
    assert await Engine(cs.NativeSolver(), cs.LocalExecutor(), MessageBus()).run(target) == 9


def sum_of(parts: list[int]) -> int:
    return sum(parts)


literals = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers() | st.sampled_from(["__tuple", "__lazy_ref"]), inner, max_size=3)
        | st.builds(Box, inner)
    ),
    max_leaves=10,
)


@given(literals)
def test_literals_go_around(value: Any) -> None:
    assert round_trip(add(value)).nodes[0].literal_inputs == {"0": value}


def test_a_literal_without_a_form_is_named() -> None:
    with pytest.raises(TypeError, match=r"'add'.*'y'.*object"):
        cs.to_json(build_graph(add(1, y=object())))


def test_what_cannot_be_imported_is_named() -> None:
    with pytest.raises(ValueError, match=r"lambda.*top of a module"):
        round_trip(cs.task(lambda: 1, name="x")())


def test_an_edge_needs_its_nodes() -> None:
    data = graph_to_dict(build_graph(add(add(1))))
    data["edges"][0]["source_id"] = "nobody"
    with pytest.raises(ValueError, match="source_id is 'nobody'"):
        graph_from_dict(data)
