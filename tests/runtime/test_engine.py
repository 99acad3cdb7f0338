"""Runs of the engine: values, order, failure, retries, caches."""

import asyncio
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cascade as cs
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.connectors.memory import MemoryConnector
from cascade.graph.model import Graph, Node
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import LARGE_GRAPH, Engine
from cascade.runtime.events import (
    RunFinished,
    RunStarted,
    TaskExecutionFinished,
    TaskExecutionStarted,
    TaskRetrying,
    TaskSkipped,
)
from cascade.runtime.exceptions import MissingParamError
from cascade.runtime.protocols import ExecutionPlan
from cascade.telemetry.identity import RunTrace, place_run
from tests.lab.waiting import HANG, with_timeout
from tests.runtime.conftest import RecordedEngine


@cs.task
def one() -> int:
    return 1


@cs.task
async def add(x: int, y: int = 0) -> int:
    return x + y


async def test_values_are_passed_by_position_and_keyword(recorded: RecordedEngine) -> None:
    assert await recorded.run(add(one(), y=add(one(), 5))) == 7


async def test_lazy_results_in_nested_arguments_are_replaced(recorded: RecordedEngine) -> None:
    @cs.task
    def total(parts: dict[str, list[int]]) -> int:
        return sum(parts["a"])

    assert await recorded.run(total({"a": [one(), 2, one()]})) == 4


async def test_events_are_published_in_order(recorded: RecordedEngine) -> None:
    await recorded.run(add(one()), params={"p": 1})
    assert recorded.recorder.event_names() == [
        "RunStarted",
        "TaskExecutionStarted one",
        "TaskExecutionFinished one",
        "TaskExecutionStarted add",
        "TaskExecutionFinished add",
        "RunFinished",
    ]
    started, finished = recorded.of(RunStarted)[0], recorded.of(RunFinished)[0]
    assert (started.target_tasks, started.params) == (["add"], {"p": 1})
    assert (finished.status, finished.error) == ("Succeeded", None)
    assert len({event.run_id for event in recorded.recorder.events}) == 1


async def test_a_failure_is_raised_unchanged_and_stops_the_run(recorded: RecordedEngine) -> None:
    error = LookupError("gone")

    @cs.task
    async def fail() -> int:
        raise error

    with pytest.raises(LookupError) as caught:
        await recorded.run(add(fail()))
    assert caught.value is error
    assert recorded.of(TaskExecutionStarted, "add") == []
    (finished,) = recorded.of(TaskExecutionFinished, "fail")
    assert (finished.status, finished.error) == ("Failed", "LookupError: gone")
    assert recorded.of(RunFinished)[0].error == "LookupError: gone"


async def test_the_first_failure_cancels_running_tasks_and_waits_for_them(recorded: RecordedEngine) -> None:
    running, stopped = asyncio.Event(), []

    @cs.task
    async def slow() -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            stopped.append(True)

    @cs.task
    async def fail() -> None:
        await running.wait()
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        await recorded.run(add(slow(), fail()))  # type: ignore[arg-type]
    assert stopped == [True]
    assert recorded.of(TaskExecutionFinished, "slow")[0].status == "Cancelled"


async def test_a_failure_waits_for_threads_that_run(recorded: RecordedEngine) -> None:
    running, may_finish, ended = threading.Event(), threading.Event(), []

    @cs.task
    def slow() -> None:
        running.set()
        may_finish.wait(HANG)
        ended.append(True)

    @cs.task
    async def fail() -> None:
        await asyncio.to_thread(running.wait, HANG)
        asyncio.get_running_loop().call_later(0.01, may_finish.set)
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        await recorded.run(add(slow(), fail()))  # type: ignore[arg-type]
    assert ended == [True]


async def test_cancelling_the_run_cancels_its_tasks(recorded: RecordedEngine) -> None:
    running = asyncio.Event()

    @cs.task
    async def forever() -> None:
        running.set()
        await asyncio.Event().wait()

    run = asyncio.create_task(recorded.run(forever()))
    await running.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert recorded.of(TaskExecutionFinished)[0].status == "Cancelled"
    assert recorded.of(RunFinished)[0].status == "Cancelled"


async def test_cancelling_does_not_wait_for_threads(recorded: RecordedEngine) -> None:
    running, may_finish = threading.Event(), threading.Event()

    @cs.task
    def stuck() -> None:
        running.set()
        may_finish.wait(HANG)

    run = asyncio.create_task(recorded.run(stuck()))
    await asyncio.to_thread(running.wait, HANG)
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await with_timeout(run)
    assert not may_finish.is_set()
    may_finish.set()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_system_exit_ends_the_run_with_all_events(recorded: RecordedEngine, error: BaseException) -> None:
    @cs.task
    async def leave() -> None:
        raise error

    with pytest.raises(type(error)):
        await recorded.run(leave())
    assert recorded.of(RunFinished)


async def test_independent_tasks_run_concurrently(recorded: RecordedEngine) -> None:
    barrier = asyncio.Barrier(3)

    @cs.task
    async def meet() -> None:
        await barrier.wait()

    @cs.task
    def gather(*_: Any) -> None: ...

    await with_timeout(recorded.run(gather(meet(), meet(), meet())))


async def test_there_are_no_stage_barriers(recorded: RecordedEngine) -> None:
    """The first step of the slow branch ends after the second step of the quick branch."""
    second_ran = asyncio.Event()

    @cs.task
    async def slow() -> None:
        await second_ran.wait()

    @cs.task
    async def quick() -> None: ...

    @cs.task
    async def second(_: Any) -> None:
        second_ran.set()

    @cs.task
    def gather(*_: Any) -> None: ...

    await with_timeout(recorded.run(gather(slow(), second(quick()))))


class Flaky:
    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise ConnectionError(f"no {self.calls}")
        return "ok"


async def test_retries_are_n_retries_and_n_plus_one_calls(recorded: RecordedEngine) -> None:
    flaky = Flaky(10)
    with pytest.raises(ConnectionError, match="no 4"):
        await recorded.run(cs.task(flaky, name="flaky")().with_retry(3))
    assert flaky.calls == 4
    assert [event.attempt for event in recorded.of(TaskRetrying)] == [1, 2, 3]
    assert len(recorded.of(TaskExecutionStarted)) == 1
    (finished,) = recorded.of(TaskExecutionFinished)
    assert [attempt.number for attempt in finished.attempts] == [1, 2, 3, 4]


async def test_a_retry_that_succeeds_is_a_success(recorded: RecordedEngine) -> None:
    assert await recorded.run(cs.task(Flaky(1), name="flaky")().with_retry(5, delay=0.001, backoff=2)) == "ok"
    (finished,) = recorded.of(TaskExecutionFinished)
    assert finished.status == "Succeeded"
    assert [attempt.error is None for attempt in finished.attempts] == [False, True]
    assert recorded.of(TaskRetrying)[0].delay == 0.001


class DictCache:
    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.inputs: list[dict[str, Any]] = []

    def check(self, task_id: str, inputs: dict[str, Any]) -> Any:
        self.inputs.append(inputs)
        return self.values.get(task_id)

    def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None:
        self.values[task_id] = output


async def test_a_cached_value_is_used_instead_of_a_call(recorded: RecordedEngine) -> None:
    cache = DictCache()
    target = add(one(), y=2).with_cache(cache)
    assert [await recorded.run(target), await recorded.run(target)] == [3, 3]
    assert cache.inputs == [{"0": 1, "y": 2}] * 2
    assert [event.reason for event in recorded.of(TaskSkipped)] == ["CacheHit"]
    assert len(recorded.of(TaskExecutionStarted, "add")) == 1


async def test_a_cache_that_cannot_save_does_not_fail_the_task(
    recorded: RecordedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(DictCache):
        def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None:
            raise OSError("disk full")

    assert await recorded.run(one().with_cache(Full())) == 1
    assert await recorded.run(add.map(x=[5]).with_cache(Full())) == [5]
    assert caplog.messages == [
        "The cache of task 'one' could not save its value",
        "The cache of task 'add', item 0 could not save its value",
    ]


async def test_a_skipped_target_is_named(recorded: RecordedEngine) -> None:
    with pytest.raises(cs.DependencyMissingError) as caught:
        await recorded.run(add(1).run_if(cs.task(lambda: False, name="no")()))
    assert (caught.value.task_id, caught.value.arg_name) == ("add", "<Target Output>")


async def test_conditions_skip_once_and_downstream(recorded: RecordedEngine) -> None:
    skipped = one().run_if(cs.task(lambda: 0, name="no")())
    with pytest.raises(cs.DependencyMissingError):
        await recorded.run(add(skipped))
    assert [(e.task_name, e.reason) for e in recorded.of(TaskSkipped)] == [
        ("one", "ConditionFalse"),
        ("add", "UpstreamSkipped_Data"),
    ]


async def test_params_come_from_the_run_then_the_default(recorded: RecordedEngine) -> None:
    target = add(cs.Param("x", type=int), cs.Param("y", default=10, type=int))
    assert await recorded.run(target, {"x": 1}) == 11
    assert await recorded.run(target, {"x": 1, "y": 2}) == 3
    assert {event.task_name for event in recorded.of(TaskExecutionStarted)} == {"add"}  # inputs are no tasks
    assert recorded.of(RunStarted)[0].inputs == ["x", "y"]


async def test_a_missing_param_is_named_before_anything_runs(recorded: RecordedEngine) -> None:
    with pytest.raises(ValueError, match=r"'missing'.*params="):
        await recorded.run(add(one(), cs.Param("missing")))
    assert recorded.of(TaskExecutionStarted) == []
    assert recorded.of(RunFinished)[0].status == "Failed"


async def test_environment_variables_are_read_at_run_time(
    recorded: RecordedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = cs.task(lambda text: text + "!", name="exclaim")(cs.Env("SOME_VALUE", default="d"))
    assert await recorded.run(target) == "d!"
    monkeypatch.setenv("SOME_VALUE", "now")
    assert await recorded.run(target) == "now!"


async def test_a_cycle_is_an_error_before_anything_runs(recorded: RecordedEngine) -> None:
    first = add(1)
    second = add(first)
    first.args = (second,)
    with pytest.raises(ValueError, match="add -> add"):
        await recorded.run(second)
    assert recorded.of(TaskExecutionStarted) == []


async def test_an_executor_may_ignore_the_functions_and_receives_the_nodes_of_the_plan() -> None:
    seen: list[Any] = []

    class RecordingExecutor:
        async def execute(self, node: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
            seen.append(node)
            return f"{node.name} result"

    class Renaming:
        calls = 0

        def resolve(self, graph: Graph) -> list[list[Node]]:
            self.calls += 1
            return [[Node(node.id, f"planned {node.name}")] for node in reversed(graph.nodes)]

    solver = Renaming()
    target: cs.LazyResult[Any] = cs.task(add.func, name="add")(one())
    assert await Engine(solver, RecordingExecutor(), MessageBus()).run(target) == "planned add result"
    assert [node.name for node in seen] == ["planned one", "planned add"]
    assert solver.calls == 1


async def test_concurrent_runs_are_separate(recorded: RecordedEngine) -> None:
    results = await asyncio.gather(*(recorded.run(add(cs.Param("n", type=int)), {"n": n}) for n in range(20)))
    assert results == list(range(20))
    assert len({event.run_id for event in recorded.of(RunFinished)}) == 20


def test_one_engine_serves_several_event_loops() -> None:
    recorded = RecordedEngine(system_resources={"cpu": 1})
    assert [asyncio.run(recorded.run(one().with_constraints(cpu=1))) for _ in range(3)] == [1, 1, 1]


async def test_a_chain_of_thousands_runs(recorded: RecordedEngine) -> None:
    target = add(0)
    for _ in range(3000):
        target = add(target, 1)
    assert await recorded.run(target) == 3000


async def test_current_task_is_known_in_the_loop_and_in_threads(recorded: RecordedEngine) -> None:
    @cs.task
    def in_thread() -> Any:
        return cs.current_task()

    @cs.task
    async def in_loop(other: Any) -> Any:
        return other, cs.current_task()

    target = in_loop(in_thread())
    first, second = await recorded.run(target)
    run_id = recorded.of(RunStarted)[0].run_id
    assert [(task.name, task.run_id) for task in (first, second)] == [("in_thread", run_id), ("in_loop", run_id)]
    assert second.task_id == target._uuid
    assert second.traceparent == f"00-{str(run_id).replace('-', '')}-{second.span_id}-01"
    assert cs.current_task() is None


@given(data=st.data(), size=st.integers(1, 12))
@settings(max_examples=60)
def test_any_graph_runs_each_task_once_and_after_what_it_needs(data: st.DataObject, size: int) -> None:
    calls: list[int] = []

    def step(number: int, needed: list[int]) -> int:
        assert set(needed) <= set(calls)
        calls.append(number)
        return number

    lazies: list[Any] = []
    for number in range(size):
        needs = data.draw(st.lists(st.sampled_from(range(number)), unique=True)) if number else []
        lazies.append(cs.task(step, name=f"t{number}", threaded=False)(number, [lazies[i] for i in needs]))
    target = cs.task(sorted, name="all", threaded=False)(lazies)
    assert asyncio.run(RecordedEngine().run(target)) == list(range(size))
    assert sorted(calls) == list(range(size))


@cs.task
async def count(xs: list[int]) -> int:
    return len(xs)


async def test_the_loop_stays_responsive_while_a_large_graph_is_planned() -> None:
    loop = asyncio.get_running_loop()

    class WaitsForTheLoop(NativeSolver):
        def resolve(self, graph: Graph) -> ExecutionPlan:
            is_called = threading.Event()
            loop.call_soon_threadsafe(is_called.set)
            assert is_called.wait(HANG)
            return super().resolve(graph)

    engine = Engine(WaitsForTheLoop(), LocalExecutor(), MessageBus())
    assert await engine.run(count([add(n) for n in range(LARGE_GRAPH)])) == LARGE_GRAPH


async def test_an_error_in_a_large_graph_is_raised_before_the_first_task(recorded: RecordedEngine) -> None:
    wrong = cs.Param("missing")
    with pytest.raises(MissingParamError, match="missing"):
        await recorded.run(count([*(add(n) for n in range(LARGE_GRAPH)), add(wrong)]))
    assert not recorded.of(TaskExecutionStarted)


class PlacesRuns(MemoryConnector):
    """Records whether the event loop has had a turn between the placement of a run in its trace and its first event."""

    had_a_turn = False

    def place_run(self, run_id: str, *_: Any) -> RunTrace:
        asyncio.get_running_loop().call_soon(self.take_a_turn)
        return place_run(run_id)

    def take_a_turn(self) -> None:
        self.had_a_turn = True

    def activate(self, _: Any) -> AbstractContextManager[None]:
        return nullcontext()


async def test_a_run_of_a_large_graph_is_placed_in_its_trace_when_it_starts() -> None:
    """A cancellation between both would leave a trace without a run."""
    connector, bus, turns = PlacesRuns(), MessageBus(), []
    bus.subscribe(RunStarted, lambda _: turns.append(connector.had_a_turn))
    engine = Engine(NativeSolver(), LocalExecutor(), bus, connector=connector)
    assert await engine.run(count([add(n) for n in range(LARGE_GRAPH)])) == LARGE_GRAPH
    assert turns == [False]
