import asyncio
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascade as cs
from cascade.runtime.engine import Engine
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


async def test_an_inner_router_may_have_a_selector_that_has_ended_before(recorded: RecordedEngine) -> None:
    inner_choice = named("inner", "x")()
    inner = use(cs.Router(inner_choice, {"x": named("x")(), "y": named("y")()}))
    target = use(cs.Router(named("outer", 1)(inner_choice), {1: inner, 2: named("two")()}))
    assert await recorded.run(target) == "x"
    assert sorted(e.task_name for e in recorded.of(TaskSkipped)) == ["two", "y"]


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


SKIPPED = object()


class Call(NamedTuple):
    """One call of a random workflow. Numbers are those of earlier calls."""

    value: int
    arguments: list[int]
    nested: list[int]
    routers: list[tuple[int, list[int]]]
    condition: int | None


@st.composite
def calls(draw: st.DrawFn) -> list[Call]:
    found: list[Call] = []
    for number in range(draw(st.integers(1, 10))):
        earlier = st.integers(0, number - 1) if number else st.nothing()
        some = st.lists(earlier, max_size=1 if number else 0)
        router = st.tuples(earlier, st.lists(earlier, min_size=3, max_size=3))
        routers = st.lists(router, max_size=2 if number else 0)
        condition = st.none() | earlier
        value, arguments, nested = draw(st.integers(0, 2)), draw(some), draw(some)
        found.append(Call(value, arguments, nested, draw(routers), draw(condition)))
    return found


def lazy_of(found: list[Call]) -> Any:
    made: list[Any] = []
    for number, call in enumerate(found):
        args = [made[i] for i in call.arguments]
        args += [[made[i]] for i in call.nested]
        args += [
            cs.Router(made[selector], {i: made[r] for i, r in enumerate(routes)}) for selector, routes in call.routers
        ]
        one = named(f"t{number}", call.value)(*args)
        made.append(one if call.condition is None else one.run_if(made[call.condition]))
    return made[-1]


def value_of(found: list[Call], number: int) -> Any:
    """Return the value of a call, or SKIPPED, by a direct evaluation of the rules for skipped tasks."""
    call = found[number]
    if call.condition is not None and value_of(found, call.condition) in {0, SKIPPED}:
        return SKIPPED
    used = [value_of(found, i) for i in call.arguments + call.nested]
    for selector, routes in call.routers:
        chosen = value_of(found, selector)
        used.append(SKIPPED if chosen is SKIPPED else value_of(found, routes[chosen]))
    return SKIPPED if SKIPPED in used else call.value


@given(calls())
def test_a_random_workflow_has_the_value_of_a_direct_evaluation(found: list[Call]) -> None:
    engine = Engine(cs.NativeSolver(), cs.LocalExecutor(threads=False), cs.MessageBus())
    expected = value_of(found, len(found) - 1)
    if expected is not SKIPPED:
        assert asyncio.run(engine.run(lazy_of(found))) == expected
        return
    with pytest.raises(cs.DependencyMissingError) as caught:
        asyncio.run(engine.run(lazy_of(found)))
    assert caught.value.arg_name == "<Target Output>"
