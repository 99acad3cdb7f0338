from typing import Any

import pytest

import cascade as cs
from cascade.runtime.events import TaskExecutionStarted, TaskSkipped
from tests.runtime.conftest import RecordedEngine


@cs.task
def use(value: Any) -> Any:
    return value


def named(name: str, value: Any = None) -> Any:
    return cs.task(lambda *_: value if value is not None else name, name=name)


def started(recorded: RecordedEngine) -> set[str]:
    return {event.task_name for event in recorded.of(TaskExecutionStarted)}


async def test_the_consumer_gets_the_chosen_value_and_the_rest_never_runs(recorded: RecordedEngine) -> None:
    only_b = named("only_b")()
    target = use(cs.Router(named("choose", "a")(), {"a": named("a")(), "b": named("b")(only_b)}))
    assert await recorded.run(target) == "a"
    assert started(recorded) == {"choose", "a", "use"}
    assert sorted((e.task_name, e.reason) for e in recorded.of(TaskSkipped)) == [("b", "Pruned"), ("only_b", "Pruned")]


async def test_shared_upstreams_run(recorded: RecordedEngine) -> None:
    shared = named("shared")()
    target = use(cs.Router(named("choose", "a")(), {"a": named("a")(shared), "b": named("b")(shared)}))
    assert await recorded.run(target) == "a"
    assert "shared" in started(recorded)


async def test_a_rejected_branch_with_another_consumer_runs(recorded: RecordedEngine) -> None:
    b = named("b")()
    target = use([use(cs.Router(named("choose", "a")(), {"a": named("a")(), "b": b})), b])
    assert await recorded.run(target) == ["a", "b"]
    assert recorded.of(TaskSkipped) == []


async def test_no_matching_route_is_an_error_that_names_the_value(recorded: RecordedEngine) -> None:
    target = use(cs.Router(named("choose", "z")(), {"a": named("a")()}))
    with pytest.raises(ValueError, match="no matching route found for 'z'"):
        await recorded.run(target)


async def test_an_unhashable_selector_matches_nothing(recorded: RecordedEngine) -> None:
    with pytest.raises(ValueError, match="no matching route found"):
        await recorded.run(use(cs.Router(cs.task(list, name="choose")(), {"a": named("a")()})))


async def test_routers_in_branches_of_routers(recorded: RecordedEngine) -> None:
    inner = use(cs.Router(named("inner", "x")(), {"x": named("x")(), "y": named("y")()}))
    target = use(cs.Router(named("outer", 1)(), {1: inner, 2: named("two")()}))
    assert await recorded.run(target) == "x"
    assert sorted(e.task_name for e in recorded.of(TaskSkipped)) == ["two", "y"]


async def test_the_branches_of_a_pruned_inner_router_are_pruned(recorded: RecordedEngine) -> None:
    inner = use(cs.Router(named("inner", "x")(), {"x": named("x")(), "y": named("y")()}))
    target = use(cs.Router(named("outer", 2)(), {1: inner, 2: named("two")()}))
    assert await recorded.run(target) == "two"
    assert sorted(e.task_name for e in recorded.of(TaskSkipped)) == ["inner", "use", "x", "y"]
    assert started(recorded) == {"outer", "two", "use"}


async def test_a_param_can_select(recorded: RecordedEngine) -> None:
    target = use(cs.Router(cs.Param("mode"), {"a": named("a")(), "b": named("b")()}))
    assert await recorded.run(target, {"mode": "b"}) == "b"


async def test_one_result_for_several_keys(recorded: RecordedEngine) -> None:
    same = named("same")()
    target = use(cs.Router(named("choose", "b")(), {"a": same, "b": same, "c": named("c")()}))
    assert await recorded.run(target) == "same"
    assert [e.task_name for e in recorded.of(TaskSkipped)] == ["c"]


async def test_a_chosen_branch_that_is_skipped_skips_the_consumer(recorded: RecordedEngine) -> None:
    a = named("a")().run_if(cs.task(lambda: False, name="no")())
    with pytest.raises(cs.DependencyMissingError):
        await recorded.run(use(cs.Router(named("choose", "a")(), {"a": a})))
    assert [(e.task_name, e.reason) for e in recorded.of(TaskSkipped)] == [
        ("a", "ConditionFalse"),
        ("use", "UpstreamSkipped_Route"),
    ]


async def test_the_branches_of_a_skipped_consumer_do_not_run(recorded: RecordedEngine) -> None:
    target = use(cs.Router(named("choose", "a")().run_if(cs.task(lambda: 0, name="no")()), {"a": named("a")()}))
    with pytest.raises(cs.DependencyMissingError):
        await recorded.run(target)
    assert "a" not in started(recorded)
    assert ("a", "Pruned") in [(e.task_name, e.reason) for e in recorded.of(TaskSkipped)]


class Ambiguous:
    """Has no truth value, like an array of several numbers."""

    def __bool__(self) -> bool:
        raise ValueError("the truth value is ambiguous")

    def __repr__(self) -> str:
        raise AssertionError("not for the engine")


async def test_a_condition_without_a_truth_value_is_named(recorded: RecordedEngine) -> None:
    condition = cs.task(Ambiguous, name="ready")()
    target = cs.task(lambda: 1, name="work")().run_if(condition)
    with pytest.raises(
        TypeError, match=r"Task 'work': .* condition 'ready', a Ambiguous, has no truth value: .*ambiguous"
    ):
        await recorded.run(target)
