import asyncio
from collections import Counter
from typing import Any

import pytest

import cascade as cs
from cascade.runtime import _map_execution
from cascade.runtime._task_group import BURST
from cascade.runtime.events import TaskExecutionFinished, TaskExecutionStarted, TaskRetrying, TaskSkipped
from cascade.spec.lazy_types import MappedLazyResult
from tests.lab.waiting import with_timeout
from tests.runtime.conftest import RecordedEngine


@cs.task
async def double(x: int, plus: int = 0) -> int:
    await asyncio.sleep(0)
    return 2 * x + plus


async def test_values_come_in_the_order_of_the_lists(recorded: RecordedEngine) -> None:
    assert await recorded.run(double.map(x=[3, 1, 2], plus=[10, 20, 30])) == [16, 22, 34]


async def test_lists_may_come_from_tasks(recorded: RecordedEngine) -> None:
    numbers = cs.task(lambda: (n for n in range(3)), name="numbers")()
    assert await recorded.run(cs.task(sum)(double.map(x=numbers))) == 6


async def test_an_empty_map_is_an_empty_list(recorded: RecordedEngine) -> None:
    assert await recorded.run(double.map(x=[])) == []


async def test_unequal_lists_are_an_error_before_anything_runs(recorded: RecordedEngine) -> None:
    with pytest.raises(ValueError, match=r"mismatched lengths.*x: 2, plus: 1"):
        await recorded.run(double.map(x=[1, 2], plus=[1]))
    assert recorded.of(TaskExecutionStarted) == []


async def test_an_argument_that_is_not_a_list_is_named(recorded: RecordedEngine) -> None:
    with pytest.raises(TypeError, match="'x' must be a list, got int"):
        await recorded.run(double.map(x=cs.task(lambda: 5, name="five")()))  # type: ignore[arg-type]


async def test_items_have_their_own_events_with_the_name_of_the_task(recorded: RecordedEngine) -> None:
    target = double.map(x=[1, 2])
    await recorded.run(target)
    items = recorded.of(TaskExecutionFinished, "double")
    assert sorted((e.map_index, e.task_id) for e in items) == [(0, f"{target._uuid}/0"), (1, f"{target._uuid}/1")]
    (whole,) = recorded.of(TaskExecutionFinished, "map(double)")
    assert (whole.kind, whole.map_size, whole.task_id) == ("map", 2, target._uuid)


async def test_each_item_gets_the_maps_policies() -> None:
    calls: list[int] = []

    @cs.task
    async def flaky(x: int) -> int:
        calls.append(x)
        if calls.count(x) == 1:
            raise ConnectionError
        return x

    class Cache:
        def check(self, task_id: str, inputs: dict[str, Any]) -> Any:
            return 99 if inputs == {"x": 3} else None

        def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None: ...

    recorded = RecordedEngine(system_resources={"cpu": 1})
    target = flaky.map(x=[1, 2, 3]).with_retry(1).with_cache(Cache()).with_constraints(cpu=1)
    assert await with_timeout(recorded.run(target)) == [1, 2, 99]
    assert len(recorded.of(TaskRetrying)) == 2
    assert [e.reason for e in recorded.of(TaskSkipped)] == ["CacheHit"]


async def test_the_first_item_that_fails_stops_the_others(recorded: RecordedEngine) -> None:
    last_runs = asyncio.Event()

    @cs.task
    async def item(x: int) -> None:
        if x == 1:
            await last_runs.wait()
            raise LookupError("one")
        if x == 2:
            last_runs.set()
        await asyncio.Event().wait()

    with pytest.raises(LookupError, match="one"):
        await with_timeout(recorded.run(item.map(x=[0, 1, 2])))
    statuses = {e.map_index: e.status for e in recorded.of(TaskExecutionFinished, "item")}
    assert statuses == {0: "Cancelled", 1: "Failed", 2: "Cancelled"}
    assert recorded.of(TaskExecutionFinished, "map(item)")[0].status == "Failed"


async def test_the_window_limits_the_items_in_flight(recorded: RecordedEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_map_execution, "MAP_WINDOW", 8)
    in_flight, most = 0, 0

    @cs.task
    async def item(x: int) -> int:
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        await asyncio.sleep(0)
        in_flight -= 1
        return x

    assert await recorded.run(item.map(x=list(range(100)))) == list(range(100))
    assert most == 8


async def test_an_iteration_of_the_event_loop_starts_a_limited_number_of_items(recorded: RecordedEngine) -> None:
    started: Counter[int] = Counter()
    loop, iteration = asyncio.get_running_loop(), 0

    def count() -> None:
        nonlocal iteration
        iteration += 1
        loop.call_soon(count)

    async def note(_: int) -> None:
        started[iteration] += 1

    count()
    await recorded.run(cs.task(note, name="note").map(_=list(range(10 * BURST))))
    assert max(started.values()) == BURST


async def test_a_factory_is_any_object_that_returns_lazy_results(recorded: RecordedEngine) -> None:
    class Factory:
        name = "factory"

        def __call__(self, x: int) -> Any:
            return double(x, plus=1)

        def map(self, **kwargs: Any) -> Any:
            return MappedLazyResult(self, kwargs)

    assert await recorded.run(Factory().map(x=[1, 2])) == [3, 5]
