"""CPU time and queue time of tasks, in events, messages and spans."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.events import TaskExecutionFinished
from cascade.runtime.task_context import current_usage
from cascade.telemetry.span_mapping import spans_of
from tests.runtime.conftest import RecordedEngine

CPU, QUEUE = "cascade.task.cpu_seconds", "cascade.task.queue_seconds"
BURNT = 0.005


def burn(_: object) -> int:
    """Use CPU time of this thread, regardless of the speed of the machine."""
    end = time.thread_time() + BURNT
    while time.thread_time() < end:
        pass
    return 1


def ended(target: Any, **options: Any) -> dict[str, dict[str, Any]]:
    """Run a target. Returns the last message of each task, by name."""
    connector = MemoryConnector()
    cs.run(target, connector=connector, log_level="OFF", **options)
    bodies = [p["body"] for p in connector.payloads]
    return {b["task_name"]: b for b in bodies if b.get("state") in {"COMPLETED", "FAILED", "SKIPPED"}}


@pytest.mark.parametrize("threaded", [True, False])
def test_a_task_has_its_cpu_time(threaded: bool) -> None:
    metadata = ended(cs.task(burn, name="burn", threaded=threaded)(0))["burn"]["metadata"]
    assert BURNT <= metadata["cpu_seconds"] <= (metadata["end_ns"] - metadata["start_ns"]) / 1e9 + 0.001


def test_a_task_that_waits_uses_little_cpu_time() -> None:
    metadata = ended(cs.task(lambda: time.sleep(0.2), name="wait")())["wait"]["metadata"]
    assert metadata["cpu_seconds"] < 0.1 < metadata["end_ns"] - metadata["start_ns"]


def test_a_coroutine_function_has_no_cpu_time() -> None:
    async def wait() -> None:
        burn(0)
        await asyncio.sleep(0)

    tasks: dict[str, Any] = {
        "async": cs.task(wait, name="async"),
        "returned": cs.task(lambda: wait(), name="returned"),  # noqa: PLW0108 - it is no coroutine function
        "in the loop": cs.task(lambda: wait(), name="in the loop", threaded=False),  # noqa: PLW0108
    }
    total = cs.task(lambda _: None, name="total")
    found = ended(total([task() for task in tasks.values()]))
    for name in tasks:
        assert "cpu_seconds" not in found[name]["metadata"]
        assert "queue_seconds" in found[name]["metadata"]
    assert "cpu_seconds" in found["total"]["metadata"]


def test_a_failed_task_has_its_cpu_time(recorded: RecordedEngine) -> None:
    def fail() -> None:
        burn(0)
        raise ValueError("wrong")

    recorded.bus.measure(tasks=True)
    with pytest.raises(ValueError, match="wrong"):
        asyncio.run(recorded.run(cs.task(fail)()))
    (event,) = recorded.of(TaskExecutionFinished)
    assert event.cpu_seconds is not None
    assert event.cpu_seconds >= BURNT


def test_a_retried_task_has_the_sum_of_its_attempts() -> None:
    @cs.task
    def flaky() -> int:
        burn(0)
        task = cs.current_task()
        if task is not None and task.attempt < 3:
            raise ConnectionError
        return 1

    connector = MemoryConnector()
    cs.run(flaky().with_retry(2), connector=connector, log_level="OFF")
    bodies = [p["body"] for p in connector.payloads if "task_name" in p["body"]]
    retried = [b["metadata"]["cpu_seconds"] for b in bodies if b["metadata"].get("reason") == "retry"]
    (payload,) = [p for p in connector.payloads if p["body"].get("state") == "COMPLETED"]
    found = {span.attributes.get("cascade.task.attempt", 0): span.attributes.get(CPU) for span in spans_of(payload)}
    spans = {number: cpu for number, cpu in found.items() if cpu is not None}
    assert [spans[1], spans[2]] == retried
    assert min(spans.values()) >= BURNT
    assert spans[0] == pytest.approx(spans[1] + spans[2] + spans[3])


def queue_of(body: dict[str, Any]) -> int:
    """Return the queue time in nanoseconds."""
    seconds: float = body["metadata"]["queue_seconds"]
    return round(seconds * 1e9)


def test_the_queue_time_starts_with_the_end_of_the_last_input() -> None:
    first, second, last = (cs.task(lambda *_: True, name=name) for name in ("first", "second", "last"))
    condition = cs.task(lambda _: True, name="condition")
    other = second()
    found = ended(last(first(), other).run_if(condition(other)))
    end_ns = max(found[name]["metadata"]["end_ns"] for name in ("first", "second", "condition"))
    assert queue_of(found["last"]) == found["last"]["metadata"]["start_ns"] - end_ns
    assert queue_of(found["condition"]) == (
        found["condition"]["metadata"]["start_ns"] - found["second"]["metadata"]["end_ns"]
    )


def test_the_queue_time_of_an_item_starts_with_its_map() -> None:
    connector = MemoryConnector()
    cs.run(cs.task(burn, name="burn").map(_=list(range(6))), connector=connector, max_workers=1, log_level="OFF")
    bodies = [p["body"] for p in connector.payloads if p["body"].get("state") == "COMPLETED"]
    (start_ns,) = [b["metadata"]["start_ns"] for b in bodies if b["metadata"]["kind"] == "map"]
    items = [b for b in bodies if b["metadata"]["kind"] == "task"]
    assert [queue_of(b) for b in items] == [b["metadata"]["start_ns"] - start_ns for b in items]
    assert queue_of(items[-1]) > 5 * BURNT * 1e9, "it waited for the other items"


def test_the_branch_of_a_router_waits_from_the_choice_on() -> None:
    branches = {name: cs.task(lambda: 1, name=name)() for name in ("a", "b")}
    chosen = cs.task(lambda: burn(0) and "b", name="selector")()
    found = ended(cs.task(lambda x: x, name="use")(cs.Router(chosen, branches)))
    assert queue_of(found["b"]) <= found["b"]["metadata"]["start_ns"] - found["selector"]["metadata"]["end_ns"]


@given(st.lists(st.sets(st.integers(0, 7), max_size=3), min_size=1, max_size=8))
def test_the_queue_time_of_any_graph_is_that_of_its_messages(sources: list[set[int]]) -> None:
    lazy = list[Any]()
    for number, of in enumerate(sources):
        given_ = [lazy[i] for i in sorted(of) if i < number]
        lazy.append(cs.task(lambda *_: None, name=str(number), threaded=False)(*given_))
    found = ended(cs.task(lambda _: None, name="target", threaded=False)(lazy))
    for number, of in enumerate(sources):
        end_ns = [found[str(i)]["metadata"]["end_ns"] for i in of if i < number]
        if end_ns:
            assert queue_of(found[str(number)]) == found[str(number)]["metadata"]["start_ns"] - max(end_ns)


def test_a_cached_value_has_neither_time() -> None:
    class Cache:
        def check(self, task_id: str, inputs: dict[str, Any]) -> int:
            return 1

        def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None: ...

    metadata = ended(cs.task(lambda: 2, name="cached")().with_cache(Cache()))["cached"]["metadata"]
    assert not {"cpu_seconds", "queue_seconds"} & metadata.keys()


class Remote:
    """An executor that knows the CPU time of a task in another process."""

    def __init__(self) -> None:
        self.usages = list[object]()

    async def execute(self, node: Any, args: list[Any], kwargs: dict[str, Any]) -> Any:
        usage = current_usage()
        self.usages.append(usage)
        if usage is not None:
            usage.cpu_ns = 2_500_000_000
        return node.callable_obj(*args, **kwargs)


def run_remotely(target: Any, measure: Callable[[cs.MessageBus], object]) -> tuple[list[object], TaskExecutionFinished]:
    bus, executor, found = cs.MessageBus(), Remote(), list[TaskExecutionFinished]()
    bus.subscribe(TaskExecutionFinished, found.append)
    measure(bus)
    asyncio.run(cs.Engine(cs.NativeSolver(), executor, bus).run(target))
    return executor.usages, found[-1]


def test_an_executor_may_give_the_cpu_time() -> None:
    _, event = run_remotely(cs.task(lambda: 1, name="one")(), lambda bus: bus.measure(tasks=True))
    assert event.cpu_seconds == 2.5


@pytest.mark.parametrize("measure", [lambda _: None, lambda bus: bus.measure()])
def test_without_a_subscriber_that_uses_it_nothing_is_measured(measure: Callable[[cs.MessageBus], object]) -> None:
    usages, event = run_remotely(cs.task(lambda: 1, name="one")(), measure)
    assert usages == [None]
    assert (event.cpu_seconds, event.queue_seconds) == (None, None)
    assert current_usage() is None
