"""A value is freed after its last consumer, during the run."""

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

import cascade as cs
from cascade.graph.build import build_graph
from cascade.runtime.state import InMemoryStateBackend
from tests.runtime.conftest import RecordedEngine
from tests.runtime.test_memory import LiveValues, Value, no_garbage_collection


def plain(function: Callable[..., Any]) -> Any:
    return cs.task(function)


def in_the_loop(function: Callable[..., Any]) -> Any:
    return cs.task(threaded=False)(function)


def coroutine(function: Callable[..., Any]) -> Any:
    async def call(*args: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args)

    return cs.task(call)


@pytest.mark.parametrize("task", [plain, in_the_loop, coroutine])
def test_a_chain_holds_two_values_at_a_time(task: Callable[..., Any]) -> None:
    live, alive = LiveValues(), list[int]()

    def step(_: Any) -> Value:
        made = live.value()
        alive.append(live.alive)
        return made

    target: Any = None
    for _ in range(12):
        target = task(step)(target)
    with no_garbage_collection():
        cs.run(target, log_level="OFF")
    assert alive == [1] + [2] * 11


def test_a_value_lives_until_its_last_consumer_has_ended() -> None:
    live, alive = LiveValues(), list[int]()

    @cs.task
    def consume(_: Any, __: Any = None) -> None:
        alive.append(live.alive)

    value = cs.task(live.value, name="make")()
    first = consume(value)
    second = consume(value, first)
    third = consume([{"nested": value}], second)
    with no_garbage_collection():
        cs.run(consume(None, third), log_level="OFF")
    assert alive == [1, 1, 1, 0]


def test_an_argument_lives_until_the_last_attempt() -> None:
    seen: list[Any] = []

    @cs.task
    def fails_once(value: Any) -> int:
        seen.append(type(value))
        if len(seen) < 3:
            raise ValueError("again")
        return len(seen)

    target = fails_once(cs.task(Value, name="make")()).with_retry(2)
    assert cs.run(target, log_level="OFF") == 3
    assert seen == [Value] * 3


async def test_a_lazy_amount_lives_until_the_last_attempt() -> None:
    calls: list[int] = []

    @cs.task
    def fails_once() -> int:
        calls.append(1)
        if len(calls) < 3:
            raise ValueError("again")
        return len(calls)

    recorded = RecordedEngine(system_resources={"cpu": 2})
    amount = cs.task(lambda: 2, name="amount")()
    assert await recorded.run(fails_once().with_retry(2).with_constraints(cpu=amount)) == 3
    assert await recorded.run(cs.task(lambda x: x, name="m").map(x=[1, 2, 3]).with_constraints(cpu=amount)) == [1, 2, 3]


def test_the_items_of_a_list_are_freed_one_by_one() -> None:
    live, alive = LiveValues(), list[int]()

    @cs.task
    def make() -> list[Value]:
        return [live.value() for _ in range(5)]

    @cs.task(threaded=False)
    def consume(x: Value, y: Value) -> None:
        alive.append(live.alive)

    with no_garbage_collection():
        cs.run(consume.map(x=make(), y=make()), log_level="OFF")
    assert alive == [10, 8, 6, 4, 2]


def test_a_list_that_is_used_later_stays_whole() -> None:
    make = cs.task(lambda: [1, 2, 3], name="make")()
    double = cs.task(lambda x: 2 * x, name="double")
    join = cs.task(lambda a, b: (a, b), name="join")
    assert cs.run(join(double.map(x=make), make), log_level="OFF") == ([2, 4, 6], [1, 2, 3])


def test_the_value_of_the_target_is_kept() -> None:
    make = cs.task(lambda: [1], name="make")
    once = make()
    assert cs.run(once, log_level="OFF") == [1]
    assert cs.run(cs.task(lambda x: x, name="same")(once), log_level="OFF") == [1]


def test_skips_routes_and_conditions_work_without_the_values() -> None:
    @cs.task
    def add(*numbers: Any) -> Any:
        return sum(numbers)

    shared = add(1, 2)
    is_wanted = cs.task(lambda: True, name="is_wanted")()
    choose = cs.task(lambda: "b", name="choose")()
    routes = {"a": add(shared, 10), "b": add(shared, 20), "c": shared}
    taken = add(cs.Router(choose, routes), shared).run_if(is_wanted)
    again = add(cs.Router(choose, {"a": add(5), "b": shared}), taken).run_if(is_wanted)
    assert cs.run(again, log_level="OFF") == 3 + (23 + 3)


class Recording(InMemoryStateBackend):
    """The state backend of the engine, which records the discarded ids."""

    def __init__(self, run_id: str) -> None:
        super().__init__(run_id)
        self.discarded: list[str] = []

    def discard_result(self, node_id: str) -> None:
        assert self.has_result(node_id)
        self.discarded.append(node_id)
        super().discard_result(node_id)


class Keeping:
    """A state backend of a user, without `discard_result`."""

    def __init__(self, run_id: str) -> None:
        self.results: dict[str, Any] = {}
        self.skipped: dict[str, str] = {}

    def put_result(self, node_id: str, result: Any) -> None:
        self.results[node_id] = result

    def get_result(self, node_id: str) -> Any:
        return self.results.get(node_id)

    def has_result(self, node_id: str) -> bool:
        return node_id in self.results

    def mark_skipped(self, node_id: str, reason: str) -> None:
        self.skipped[node_id] = reason

    def get_skip_reason(self, node_id: str) -> str | None:
        return self.skipped.get(node_id)


def workflow() -> Any:
    """A target with all kinds of edges; one branch is pruned, with the node that only it uses."""
    one, two = cs.task(lambda: 1, name="one")(), cs.task(lambda: 2, name="two")()
    choose = cs.task(lambda: "a", name="choose")()
    take: Any = cs.task(lambda *xs, **named: len(xs), name="take")
    routes = {"a": take(one), "b": take(two)}
    maps = cs.task(lambda x: x, name="item").map(x=[1, 2])
    param = cs.Param("p", default=3)
    return take(cs.Router(choose, routes), [one], maps, key={"x": param}).run_if(one).with_constraints(cpu=one)


async def test_each_value_except_that_of_the_target_is_discarded_once() -> None:
    made: list[Recording] = []

    def backend(run_id: str) -> Recording:
        made.append(Recording(run_id))
        return made[-1]

    target = workflow()
    assert await RecordedEngine(state_backend_cls=backend).run(target) == 3
    (state,) = made
    ran = {node.id for node in build_graph(target).nodes if state.get_skip_reason(node.id) is None}
    assert Counter(state.discarded) == Counter(ran - {target._uuid})
    assert state.has_result(target._uuid)


async def test_a_backend_that_keeps_everything_works() -> None:
    made: list[Keeping] = []

    def backend(run_id: str) -> Keeping:
        made.append(Keeping(run_id))
        return made[-1]

    target = workflow()
    assert await RecordedEngine(state_backend_cls=backend).run(target) == 3
    graph = build_graph(target)
    assert set(made[0].results) | set(made[0].skipped) == {node.id for node in graph.nodes}
