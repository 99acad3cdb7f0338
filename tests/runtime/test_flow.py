import pickle
from collections.abc import Callable
from typing import Any
from unittest.mock import MagicMock

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascade as cs
from cascade.graph.build import build_graph
from cascade.graph.model import Edge, EdgeType, Graph, Node
from cascade.runtime.flow import FlowManager
from cascade.runtime.state import InMemoryStateBackend
from cascade.spec.lazy_types import LazyResult
from tests.runtime.conftest import RecordedEngine


def lazy(name: str) -> LazyResult[Any]:
    return LazyResult(cs.task(lambda: None, name=name), (), {}, name)


def routed() -> tuple[Graph, dict[str, Node]]:
    """The selector S chooses A or B for C. Only B needs X. Both need Y."""
    nodes = {name: Node(name, name) for name in "SABCXY"}
    router = cs.Router(lazy("S"), {"a": lazy("A"), "b": lazy("B")})
    edges = [
        Edge(nodes["S"], nodes["C"], "0", router=router),
        Edge(nodes["A"], nodes["C"], "_route_a", EdgeType.ROUTER_ROUTE),
        Edge(nodes["B"], nodes["C"], "_route_b", EdgeType.ROUTER_ROUTE),
        Edge(nodes["X"], nodes["B"], "0"),
        Edge(nodes["Y"], nodes["A"], "0"),
        Edge(nodes["Y"], nodes["B"], "1"),
    ]
    return Graph(list(nodes.values()), edges), nodes


def test_demand_counts_outgoing_edges_and_one_for_the_target() -> None:
    graph, _ = routed()
    assert FlowManager(graph, "C").downstream_demand == {"S": 1, "A": 1, "B": 1, "C": 1, "X": 1, "Y": 2}


def test_a_rejected_branch_is_pruned_with_its_own_upstream_nodes() -> None:
    graph, _ = routed()
    state = MagicMock()
    state.get_skip_reason.return_value = None
    FlowManager(graph, "C").register_result("S", "a", state)
    assert [call.args for call in state.mark_skipped.call_args_list] == [("B", "Pruned"), ("X", "Pruned")]


def test_only_nodes_that_certainly_run_are_needed() -> None:
    graph, _ = routed()
    flow = FlowManager(graph, "C")
    assert {planned.id for planned in flow.need(flow.nodes["C"])} == {"C", "S"}
    assert {planned.id for planned in flow.need(flow.nodes["A"])} == {"A", "Y"}


def test_a_skipped_node_releases_its_branches() -> None:
    graph, _ = routed()
    state = InMemoryStateBackend("run")
    assert set(FlowManager(graph, "C").release_routes("C", state)) == {"A", "B", "X", "Y"}


def test_reasons_to_skip() -> None:
    source, target = Node("s", "s"), Node("t", "t")

    def reason(kind: EdgeType, *, result: Any = None, skipped: str | None = None) -> str | None:
        state = InMemoryStateBackend("run")
        if skipped:
            state.mark_skipped("s", skipped)
        elif result is not None:
            state.put_result("s", result)
        return FlowManager(Graph([source, target], [Edge(source, target, "0", kind)]), "t").should_skip(target, state)

    assert reason(EdgeType.CONDITION, result=True) is None
    assert reason(EdgeType.CONDITION, result=False) == "ConditionFalse"
    assert reason(EdgeType.CONDITION) == "ConditionMissing"
    assert reason(EdgeType.CONDITION, skipped="x") == "UpstreamSkipped_Condition"
    assert reason(EdgeType.DATA, skipped="x") == "UpstreamSkipped_Data"
    assert reason(EdgeType.DATA, result=1) is None


def test_a_chosen_branch_that_was_skipped_skips_its_consumer() -> None:
    graph, nodes = routed()
    state = InMemoryStateBackend("run")
    state.put_result("S", "a")
    state.mark_skipped("A", "ConditionFalse")
    assert FlowManager(graph, "C").should_skip(nodes["C"], state) == "UpstreamSkipped_Route"


@given(st.integers(0, 5), st.integers(1, 6))
def test_exactly_the_rejected_branches_are_pruned(chosen: int, branches: int) -> None:
    routes = {i: cs.task(lambda: None, name=f"b{i}")() for i in range(branches)}
    target = cs.task(lambda x: x, name="c")(cs.Router(cs.task(lambda: 0, name="s")(), routes))
    graph = build_graph(target)
    flow, state = FlowManager(graph, target._uuid), InMemoryStateBackend("run")
    selector = next(node for node in graph.nodes if node.name == "s")
    pruned = set(flow.register_result(selector.id, chosen, state))
    assert pruned == {route._uuid for key, route in routes.items() if key != chosen}


def task(name: str, *upstreams: Any, value: Any = 1) -> Any:
    return cs.task(lambda *_: value, name=name)(*upstreams)


def never(name: str = "is_monday") -> Any:
    return task(name, value=0)


def chain(length: int) -> Any:
    link = task("load").run_if(never())
    for number in range(length):
        link = task(f"step{number}", link)
    return link


def through(target: str, upstream: str) -> str:
    return (
        f"Task '{target}' was skipped: it depends on '{upstream}', which was skipped: "
        f"the condition 'is_monday' of '{upstream}' was false"
    )


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (lambda: task("publish").run_if(never()), "Task 'publish' was skipped: its condition 'is_monday' was false"),
        (
            lambda: cs.task(lambda x: x, name="send").map(x=[1]).run_if(never()),
            "Task 'map(send)' was skipped: its condition 'is_monday' was false",
        ),
        (
            lambda: task("publish").run_if(cs.Param("wet", default=False)),
            "Task 'publish' was skipped: its condition Param 'wet' was false",
        ),
        (
            lambda: task("publish").run_if(cs.Env("WET", default="")),
            "Task 'publish' was skipped: its condition Env 'WET' was false",
        ),
        (
            lambda: task("publish", task("other"), [task("load").run_if(never())]),
            through("publish", "load"),
        ),
        (
            lambda: chain(300),
            through("step299", "load"),
        ),
        (
            lambda: task("publish").run_if(task("is_day").run_if(never())),
            through("publish", "is_day"),
        ),
        (
            lambda: task("publish", cs.Router(task("pick", value="a"), {"b": task("b"), "a": chain(1)})),
            through("publish", "load"),
        ),
        (
            lambda: task("publish").with_constraints(cpu=task("cpus").run_if(never())),
            through("publish", "cpus"),
        ),
        (
            lambda: task("a\nb").run_if(never("no\x1b[2J")),
            "Task 'a\\nb' was skipped: its condition 'no\\x1b[2J' was false",
        ),
    ],
    ids=["own", "map", "Param", "Env", "upstream", "chain", "condition", "route", "constraint", "escaped"],
)
async def test_the_error_of_a_skipped_target_names_the_task_and_the_condition(
    target: Callable[[], Any], text: str, recorded: RecordedEngine
) -> None:
    lazy_target = target()
    with pytest.raises(cs.DependencyMissingError) as caught:
        await recorded.run(lazy_target)
    assert str(caught.value) == text
    fields = caught.value.task_id, caught.value.arg_name, caught.value.dependency_id
    assert fields[1:] == ("<Target Output>", lazy_target._uuid)
    copy = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own bytes
    assert (str(copy), copy.task_id, copy.arg_name, copy.dependency_id) == (text, *fields)


async def test_a_reason_of_the_state_backend_is_given_as_it_is() -> None:
    class Excluded(InMemoryStateBackend):
        def get_skip_reason(self, node_id: str) -> str:
            return "Excluded by the operator"

    recorded = RecordedEngine(state_backend_cls=Excluded)
    with pytest.raises(cs.DependencyMissingError, match="Task 'a' was skipped: Excluded by the operator"):
        await recorded.run(task("a"))
