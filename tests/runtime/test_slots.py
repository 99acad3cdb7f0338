"""The scheduler takes a slot of the executor for each task: until then the task is PENDING."""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

import cascade as cs
from cascade.adapters.executors.local import LocalExecutor
from cascade.graph.model import Node
from cascade.runtime.engine import run_nested
from cascade.runtime.events import TaskBlocked, TaskExecutionFinished, TaskExecutionStarted, TaskRetrying
from cascade.runtime.protocols import ExecutorSlots, Slot
from tests.lab.waiting import HANG, NEVER, with_timeout
from tests.runtime.control.controlled_engine import ControlledEngine

collect = cs.task(lambda xs: xs, name="collect", threaded=False)


class BlockingFunction:
    """A plain function that counts its calls and blocks until `open`."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._more, self._open = asyncio.Event(), threading.Event()
        self.began: list[Any] = []

    def __call__(self, i: Any = 0) -> Any:
        self.began.append(i)
        self._loop.call_soon_threadsafe(self._more.set)
        assert self._open.wait(HANG)
        return i

    async def begun(self, count: int) -> None:
        while len(self.began) < count:
            self._more.clear()
            await self._more.wait()

    def open(self) -> None:
        self._open.set()


def fan_out(task: Any, count: int) -> Any:
    return collect([task(i) for i in range(count)])


def mapped(task: Any, count: int) -> Any:
    return task.map(i=list(range(count)))


async def test_tasks_that_wait_for_a_thread_are_pending_and_have_a_wait() -> None:
    controlled, blocking = ControlledEngine(executor=LocalExecutor(max_workers=2)), BlockingFunction()
    run = controlled.start(fan_out(cs.task(blocking, name="work"), 5))
    await blocking.begun(2)
    await controlled.wait_for(TaskBlocked, 3)

    assert controlled.reasons == [("work", "executor")] * 3
    assert controlled.started == ["work"] * 2
    blocking.open()
    assert await with_timeout(run) == [0, 1, 2, 3, 4]
    pending = [body for body in controlled.bodies("TaskStateEvent") if body["state"] == "PENDING"]
    assert [body["metadata"]["reason"] for body in pending] == ["executor"] * 3
    assert not any("constraint" in body["metadata"] for body in pending)
    ended = [one for one in controlled.events_of(TaskExecutionFinished) if one.task_name == "work"]
    late = [one for one in ended if one.waits]
    assert [[wait.reason for wait in one.waits] for one in late] == [["executor"]] * 3
    assert all(one.waits[-1].end_ns <= one.start_ns for one in late), "RUNNING begins after the wait"
    assert all(wait.constraint is None for one in late for wait in one.waits)


@pytest.mark.parametrize("shape", [fan_out, mapped])
@pytest.mark.parametrize("scope", ["global", "task/work"])
async def test_a_pause_holds_the_tasks_that_wait_for_a_thread(shape: Callable[..., Any], scope: str) -> None:
    controlled, first, count = ControlledEngine(executor=LocalExecutor(max_workers=2)), BlockingFunction(), 8
    run = controlled.start(shape(cs.task(first, name="work"), count))
    await first.begun(2)
    await controlled.constrain(scope, "pause")
    first.open()
    await controlled.wait_for(TaskExecutionFinished, 2)
    while [reason for _, reason in controlled.reasons].count("paused") < 1:
        await controlled.wait_for(TaskBlocked, len(controlled.reasons) + 1)

    assert len(first.began) == 2
    assert controlled.started.count("work") == 2
    await controlled.clear(scope, "pause")
    assert await with_timeout(run) == list(range(count))


async def test_a_pause_holds_the_waiting_tasks_of_all_runs_that_share_the_threads() -> None:
    executor = LocalExecutor(max_workers=2)
    one, other, blocking = ControlledEngine(executor=executor), ControlledEngine(executor=executor), BlockingFunction()
    busy = one.start(fan_out(cs.task(blocking, name="busy"), 4))
    await blocking.begun(2)
    waiting = other.start(fan_out(cs.task(lambda i: i, name="waiting"), 4))
    await other.wait_for(TaskBlocked, 4)
    await other.constrain("global", "pause")
    blocking.open()
    assert await with_timeout(busy) == [0, 1, 2, 3]
    while "paused" not in [reason for _, reason in other.reasons]:
        await other.wait_for(TaskBlocked, len(other.reasons) + 1)

    assert other.started == []
    await other.clear("global", "pause")
    assert await with_timeout(waiting) == [0, 1, 2, 3]


async def test_a_pause_holds_the_waiting_tasks_of_a_nested_run() -> None:
    controlled, blocking = ControlledEngine(executor=LocalExecutor(max_workers=1)), BlockingFunction()
    inner = cs.task(blocking, name="inner")

    @cs.task
    async def outer() -> Any:
        return await run_nested(fan_out(inner, 3))

    run = controlled.start(outer())
    await blocking.begun(1)
    await controlled.wait_for(TaskBlocked, 2)
    await controlled.constrain("global", "pause")
    blocking.open()
    while "paused" not in [reason for _, reason in controlled.reasons]:
        await controlled.wait_for(TaskBlocked, len(controlled.reasons) + 1)
    assert len(blocking.began) == 1
    await controlled.clear("global", "pause")
    assert await with_timeout(run) == [0, 1, 2]


async def test_a_task_that_waits_for_a_slot_holds_no_resource_and_no_permit() -> None:
    controlled = ControlledEngine(executor=LocalExecutor(max_workers=1), system_resources={"gpu": 1})
    await controlled.constrain("task/user-*", "concurrency", {"limit": 1})
    blocking, done = BlockingFunction(), asyncio.Event()
    blocker = controlled.start(cs.task(blocking, name="blocker")())
    await blocking.begun(1)
    threaded = controlled.start(cs.task(lambda: "threaded", name="user-1")().with_constraints(gpu=1))
    await controlled.wait_for(TaskBlocked)

    async def in_loop() -> str:
        done.set()
        return "in loop"

    assert await with_timeout(controlled.start(cs.task(in_loop, name="user-2")().with_constraints(gpu=1))) == "in loop"
    assert not threaded.done()
    blocking.open()
    assert await with_timeout(threaded) == "threaded"
    assert await with_timeout(blocker) == 0


async def test_slots_resources_and_a_limit_do_not_deadlock() -> None:
    controlled = ControlledEngine(executor=LocalExecutor(max_workers=2), system_resources={"gpu": 1, "net": 3})
    await controlled.constrain("task/a", "concurrency", {"limit": 1})
    tasks = {name: cs.task(lambda i: i, name=name) for name in "abc"}
    need: dict[str, dict[str, int]] = {"a": {"gpu": 1}, "b": {"gpu": 1, "net": 2}, "c": {"net": 2}}
    target = collect([tasks[n](i).with_constraints(**need[n]) for i in range(40) for n in "abc"])
    assert await with_timeout(controlled.start(target)) == [i for i in range(40) for _ in "abc"]
    assert controlled.engine.resource_manager.usage == {"gpu": 0.0, "net": 0.0}


async def test_a_task_holds_no_slot_during_the_delay_of_a_retry() -> None:
    executor = LocalExecutor(max_workers=1)
    controlled, calls = ControlledEngine(executor=executor), []

    def flaky() -> str:
        calls.append("flaky")
        if len(calls) == 1:
            raise OSError
        return "flaky"

    retried = controlled.start(cs.task(flaky, name="flaky")().with_retry(1, delay=NEVER))
    await controlled.wait_for(TaskRetrying)
    assert await with_timeout(controlled.start(cs.task(lambda: "other", name="other")())) == "other"
    retried.cancel()
    with suppress(asyncio.CancelledError):
        await retried
    assert calls == ["flaky"]


async def test_a_later_attempt_takes_a_slot_again() -> None:
    controlled, blocking, calls = ControlledEngine(executor=LocalExecutor(max_workers=1)), BlockingFunction(), []
    may_fail = threading.Event()

    def flaky() -> str:
        calls.append("flaky")
        if len(calls) == 1:
            assert may_fail.wait(HANG)
            raise OSError
        return "flaky"

    retried = controlled.start(cs.task(flaky, name="flaky")().with_retry(1, delay=0.002))
    await controlled.wait_for(TaskExecutionStarted)
    blocker = controlled.start(cs.task(blocking, name="blocker")())
    await controlled.wait_for(TaskBlocked)
    may_fail.set()  # the blocker already waits for this slot
    await blocking.begun(1)
    await controlled.wait_for(TaskBlocked, 2)
    assert controlled.reasons == [("blocker", "executor"), ("flaky", "executor")]
    assert calls == ["flaky"]
    blocking.open()
    assert await with_timeout(retried) == "flaky"
    assert await with_timeout(blocker) == 0
    waits = next(one for one in controlled.events_of(TaskExecutionFinished) if one.task_name == "flaky").waits
    assert [wait.reason for wait in waits] == ["retry", "executor"]


async def test_coroutines_and_functions_in_the_loop_need_no_slot() -> None:
    controlled, blocking = ControlledEngine(executor=LocalExecutor(max_workers=1)), BlockingFunction()
    blocker = controlled.start(cs.task(blocking, name="blocker")())
    await blocking.begun(1)

    @cs.task
    async def coroutine() -> int:
        return 1

    assert await with_timeout(
        controlled.start(collect([coroutine(), cs.task(lambda: 2, threaded=False, name="two")()]))
    ) == [
        1,
        2,
    ]
    blocking.open()
    await with_timeout(blocker)
    assert controlled.reasons == []


async def test_a_cancelled_run_releases_its_slots() -> None:
    controlled, blocking = ControlledEngine(executor=LocalExecutor(max_workers=1)), BlockingFunction()
    blocker = controlled.start(cs.task(blocking, name="blocker")())
    await blocking.begun(1)
    waiting = controlled.start(fan_out(cs.task(lambda i: i, name="waiting"), 3))
    await controlled.wait_for(TaskBlocked, 3)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    blocking.open()
    await with_timeout(blocker)
    assert await with_timeout(controlled.start(fan_out(cs.task(lambda i: i, name="next"), 3))) == [0, 1, 2]


class AdjustableSlots:
    """Slots of an executor whose number can change."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.used = 0
        self.requests: deque[Callable[[Slot], object]] = deque()

    def try_acquire(self) -> "AdjustableSlot | None":
        if self.used >= self.size:
            return None
        self.used += 1
        return AdjustableSlot(self)

    def request(self, granted: Callable[[Slot], object]) -> "Request":
        self.requests.append(granted)
        return Request(self, granted)

    def resize(self, size: int) -> None:
        self.size = size
        while self.requests and (slot := self.try_acquire()):
            self.requests.popleft()(slot)


class AdjustableSlot:
    def __init__(self, slots: AdjustableSlots) -> None:
        self._slots = slots

    def release(self) -> None:
        self._slots.used -= 1
        self._slots.resize(self._slots.size)


class Request:
    def __init__(self, slots: AdjustableSlots, granted: Callable[[Slot], object]) -> None:
        self._slots, self._granted = slots, granted

    def withdraw(self) -> None:
        with suppress(ValueError):
            self._slots.requests.remove(self._granted)


class Remote:
    """An executor with its own slots, also for coroutine functions."""

    def __init__(self, slots: AdjustableSlots) -> None:
        self.own_slots = slots
        self.most = 0

    def slots(self, node: Node) -> ExecutorSlots | None:
        return None if node.name == "collect" else self.own_slots

    async def execute(self, node: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
        self.most = max(self.most, self.own_slots.used)
        value = node.callable_obj(*args, **kwargs)
        return await value if asyncio.iscoroutine(value) else value


@pytest.mark.parametrize("shape", [fan_out, mapped])
async def test_the_number_of_slots_of_an_executor_may_change(shape: Callable[..., Any]) -> None:
    executor, began, may_finish = Remote(AdjustableSlots(2)), [], asyncio.Event()
    controlled = ControlledEngine(executor=executor)

    async def work(i: int) -> int:
        began.append(i)
        await may_finish.wait()
        return i

    run = controlled.start(shape(cs.task(work), 9))
    await controlled.wait_for(TaskExecutionStarted, 2 + (shape is mapped))
    assert executor.own_slots.used == 2
    executor.own_slots.resize(4)
    if shape is fan_out:
        await controlled.wait_for(TaskExecutionStarted, 4)
    executor.own_slots.resize(3)
    may_finish.set()
    assert await with_timeout(run) == list(range(9))
    assert executor.most <= 4
    assert executor.own_slots.used == 0
    assert not executor.own_slots.requests


async def test_without_slots_tasks_wait_for_the_first_one() -> None:
    executor = Remote(AdjustableSlots(0))
    controlled = ControlledEngine(executor=executor)
    run = controlled.start(fan_out(cs.task(lambda i: i, name="work"), 3))
    await controlled.wait_for(TaskBlocked, 3)
    executor.own_slots.resize(1)
    assert await with_timeout(run) == [0, 1, 2]


async def test_an_executor_without_slots_is_called_at_once() -> None:
    class Plain:
        async def execute(self, node: Node, args: list[Any], kwargs: dict[str, Any]) -> Any:
            return node.callable_obj(*args, **kwargs)

    controlled = ControlledEngine(executor=Plain())
    assert await with_timeout(controlled.start(fan_out(cs.task(lambda i: i, name="work"), 50))) == list(range(50))
    assert controlled.reasons == []


@pytest.mark.parametrize("broken", ["try_acquire", "request"])
async def test_slots_that_raise_do_not_stop_the_run(broken: str, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(AdjustableSlots):
        pass

    def fail(*_: Any) -> None:
        raise OSError("no answer")

    setattr(Broken, broken, fail)
    controlled = ControlledEngine(executor=Remote(Broken(0)))
    assert await with_timeout(controlled.start(fan_out(cs.task(lambda i: i, name="work"), 3))) == [0, 1, 2]
    assert "tasks start without a slot" in caplog.text


async def test_items_in_the_delay_of_a_retry_do_not_block_other_items() -> None:
    controlled, loop, others = (
        ControlledEngine(executor=LocalExecutor(max_workers=2)),
        asyncio.get_running_loop(),
        asyncio.Event(),
    )
    seen: list[int] = []

    def work(i: int) -> int:
        seen.append(i)
        if i < 4 and seen.count(i) == 1:
            raise OSError
        if sum(i >= 4 for i in seen) == 6:
            loop.call_soon_threadsafe(others.set)
        return i

    run = controlled.start(cs.task(work).map(i=list(range(10))).with_retry(1, delay=NEVER))
    await with_timeout(others.wait())
    assert sorted(seen) == list(range(10))
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
