"""Timeouts of attempts and of runs."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import cascade as cs
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine, run_nested
from cascade.runtime.events import RunFinished, TaskExecutionFinished, TaskRetrying
from tests.lab.waiting import HANG, NEVER, until, with_timeout
from tests.runtime.conftest import RecordedEngine
from tests.runtime.control.controlled_engine import ControlledEngine

SHORT = 0.02
"""A timeout that the tasks of these tests exceed on any machine, because they wait for an event of the test."""


@cs.task
async def wait(x: int = 0) -> None:
    await asyncio.get_running_loop().create_future()


@cs.task(threaded=False)
def same(value: Any) -> Any:
    return value


class Blocked:
    """A plain function that waits in its thread until the end of the test."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.calls = self.running = self.peak = 0
        self._lock = threading.Lock()

    def __call__(self, x: int = 0) -> str:
        with self._lock:
            self.calls, self.running = self.calls + 1, self.running + 1
            self.peak = max(self.peak, self.running)
        self.release.wait(HANG)
        with self._lock:
            self.running -= 1
        return "late"

    async def ended(self) -> None:
        self.release.set()
        await until(lambda: not self.running)


@pytest.fixture
async def blocked() -> AsyncIterator[Blocked]:
    found = Blocked()
    yield found
    await found.ended()


def task_of(blocked: Blocked) -> Any:
    return cs.task(blocked, name="blocked")


async def test_a_coroutine_that_exceeds_its_timeout_is_cancelled(recorded: RecordedEngine) -> None:
    cancelled: list[BaseException] = []

    async def work() -> None:
        try:
            await asyncio.get_running_loop().create_future()
        except asyncio.CancelledError as error:
            cancelled.append(error)
            raise

    with pytest.raises(TimeoutError, match=r"^task 'work' exceeded its timeout of 0\.02 s"):
        await with_timeout(recorded.run(cs.task(work)().with_timeout(SHORT)))
    assert len(cancelled) == 1
    (ended,) = recorded.of(TaskExecutionFinished)
    assert (ended.status, ended.result) == ("Failed", "timeout")
    assert ended.exception is not None
    assert ended.exception.type == "TimeoutError"
    assert (recorded.of(RunFinished)[0].status, recorded.of(RunFinished)[0].result) == ("Failed", "timeout")


async def test_the_error_names_the_item_the_label_and_the_attempt(recorded: RecordedEngine) -> None:
    target = wait.map(x=[5]).with_label(lambda x: f"number {x}").with_retry(1, delay=0).with_timeout(SHORT)
    with pytest.raises(TimeoutError) as caught:
        await with_timeout(recorded.run(target))
    assert str(caught.value) == "task 'wait', item 0 ('number 5'), attempt 2 of 2 exceeded its timeout of 0.02 s"
    (retried,) = recorded.of(TaskRetrying)
    assert retried.result == "timeout"
    (item,) = recorded.of(TaskExecutionFinished, "wait")
    assert [attempt.result for attempt in item.attempts] == ["timeout", "timeout"]


@pytest.mark.parametrize("retries", [0, 2])
async def test_each_attempt_has_the_whole_time(recorded: RecordedEngine, retries: int) -> None:
    started: list[float] = []

    async def work() -> str:
        started.append(time.monotonic())
        if len(started) <= retries:
            await asyncio.get_running_loop().create_future()
        return "in time"

    target = cs.task(work)().with_timeout(SHORT if retries else NEVER)
    if retries:
        target = target.with_retry(retries, delay=0)
    assert await with_timeout(recorded.run(target)) == "in time"
    assert all(later - earlier >= SHORT / 2 for earlier, later in pairwise(started))


async def test_a_wait_before_the_start_does_not_count(make_recorded: Callable[..., RecordedEngine]) -> None:
    recorded = make_recorded(system_resources={"gpu": 1})
    done: list[int] = []

    async def work(x: int) -> None:
        await asyncio.sleep(0.05)
        done.append(x)

    await with_timeout(recorded.run(cs.task(work).map(x=range(6)).with_constraints(gpu=1).with_timeout(0.2 * 6)))
    assert done == list(range(6))


async def returns_late() -> str:
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        return "late"
    return "never"


async def fails_late() -> None:
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        raise KeyError("clean up") from None


async def uncancels() -> str:
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        assert task is not None
        task.uncancel()
        await asyncio.sleep(0)
    return "late"


async def cleans_up() -> None:
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await asyncio.sleep(0)


async def own_timeout() -> None:
    try:
        async with asyncio.timeout(NEVER):
            await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError:
        raise TimeoutError("another one") from None


@pytest.mark.parametrize("work", [returns_late, fails_late, uncancels, cleans_up, own_timeout])
@pytest.mark.parametrize("in_map", [False, True])
async def test_after_the_timeout_the_coroutine_does_not_change_the_result(
    recorded: RecordedEngine, work: Any, *, in_map: bool
) -> None:
    task = cs.task(work)
    target: Any = same([task().with_timeout(SHORT)])
    if in_map:

        async def item(x: int) -> Any:
            return await work()

        target = cs.task(item).map(x=[1]).with_timeout(SHORT)
    with pytest.raises(TimeoutError, match=r"exceeded its timeout of 0\.02 s") as caught:
        await with_timeout(recorded.run(target))
    if work is fails_late:
        assert isinstance(caught.value.__cause__, KeyError)
    assert await with_timeout(recorded.run(same("next"))) == "next"


async def test_a_timeout_error_of_the_function_keeps_its_text(recorded: RecordedEngine) -> None:
    async def fetch() -> None:
        raise TimeoutError("the server does not answer")

    with pytest.raises(TimeoutError, match="the server does not answer"):
        await recorded.run(cs.task(fetch)().with_timeout(NEVER))
    assert recorded.of(TaskExecutionFinished)[0].result == "timeout"


async def test_an_inner_timeout_of_the_function_does_not_end_the_attempt(recorded: RecordedEngine) -> None:
    async def fetch() -> str:
        try:
            async with asyncio.timeout(SHORT):
                await asyncio.get_running_loop().create_future()
        except TimeoutError:
            return "fallback"
        return "never"

    assert await with_timeout(recorded.run(cs.task(fetch)().with_timeout(NEVER))) == "fallback"


async def test_the_cancellation_of_the_run_is_no_timeout(recorded: RecordedEngine) -> None:
    run = asyncio.create_task(recorded.run(wait().with_timeout(NEVER)))
    await until(lambda: recorded.recorder.events and "TaskExecutionStarted wait" in recorded.recorder.event_names())
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await with_timeout(run)
    assert recorded.of(TaskExecutionFinished)[0].result == "cancellation"


async def test_a_failure_of_another_task_cancels_a_task_with_a_timeout(recorded: RecordedEngine) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await with_timeout(recorded.run(same([wait().with_timeout(NEVER), cs.task(fail)()])))
    results = {event.task_name: event.result for event in recorded.of(TaskExecutionFinished)}
    assert results == {"wait": "cancellation", "fail": "failure"}


async def test_a_run_continues_without_a_function_in_a_thread(
    recorded: RecordedEngine, blocked: Blocked, caplog: pytest.LogCaptureFixture
) -> None:
    target = same(
        [
            task_of(blocked)().with_timeout(SHORT).allow_failure(),
            task_of(blocked).map(x=[1, 2]).with_timeout(SHORT).allow_failure(),
        ]
    )
    one, items = await with_timeout(recorded.run(target))
    assert [str(failure.error) for failure in (one, *items)] == [
        "task 'blocked' exceeded its timeout of 0.02 s",
        "task 'blocked', item 0 exceeded its timeout of 0.02 s",
        "task 'blocked', item 1 exceeded its timeout of 0.02 s",
    ]
    assert blocked.running > 0
    (record,) = [record for record in caplog.records if "cannot be stopped" in record.getMessage()]
    assert record.levelname == "WARNING"
    await blocked.ended()
    assert {event.result for event in recorded.of(TaskExecutionFinished, "blocked")} == {"timeout"}


async def test_the_place_of_a_function_stays_taken_until_it_ends(blocked: Blocked) -> None:
    events, executor = MessageBus(), LocalExecutor(max_workers=2)
    engine = Engine(NativeSolver(), executor, events)
    target = task_of(blocked).map(x=range(3)).with_timeout(SHORT).with_retry(1, delay=0).allow_failure()
    run = asyncio.create_task(engine.run(target))
    await until(lambda: blocked.calls == 2)
    await asyncio.sleep(3 * SHORT)
    assert (blocked.calls, blocked.peak) == (2, 2)
    blocked.release.set()
    values = await with_timeout(run)
    assert blocked.peak == 2
    assert all(value == "late" or isinstance(value, cs.Failure) for value in values)
    executor.close()


async def test_a_system_resource_stays_taken_until_the_function_ends(
    make_recorded: Callable[..., RecordedEngine], blocked: Blocked
) -> None:
    recorded = make_recorded(system_resources={"gpu": 1})
    after = same("after").with_constraints(gpu=1)
    first = task_of(blocked)().with_constraints(gpu=1).with_timeout(SHORT).allow_failure()
    usage = recorded.engine.resource_manager
    run = asyncio.create_task(recorded.run(same([first, after.run_if(same(True)), cs.task(lambda x: x)(first)])))
    await until(lambda: recorded.of(TaskExecutionFinished, "blocked"))
    blocked.release.set()
    assert (await with_timeout(run))[1] == "after"
    assert usage.usage == {"gpu": 0}


async def test_the_end_of_a_run_releases_the_resources_of_a_function_that_still_runs(
    make_recorded: Callable[..., RecordedEngine], blocked: Blocked
) -> None:
    recorded = make_recorded(system_resources={"gpu": 1})
    failure = await with_timeout(
        recorded.run(task_of(blocked)().with_constraints(gpu=1).with_timeout(SHORT).allow_failure())
    )
    assert isinstance(failure, cs.Failure)
    assert recorded.engine.resource_manager.usage == {"gpu": 0}
    assert await with_timeout(recorded.run(same(1).with_constraints(gpu=1))) == 1


async def test_functions_that_still_run_do_not_block_later_runs(blocked: Blocked) -> None:
    many = task_of(blocked).map(x=range(4)).with_timeout(SHORT).allow_failure()
    values = await with_timeout(cs.run_async(many, max_workers=4, log_level="OFF"))
    assert all(isinstance(value, cs.Failure) for value in values)
    for _ in range(3):
        assert await with_timeout(cs.run_async(cs.task(lambda: 1)(), max_workers=4, log_level="OFF")) == 1


async def test_a_function_that_still_runs_has_the_identity_of_its_attempt(recorded: RecordedEngine) -> None:
    seen, release = [], threading.Event()

    def number() -> int:
        task = cs.current_task()
        assert task is not None
        return task.attempt

    @cs.task
    def late() -> None:
        first = number()
        release.wait(HANG)
        seen.append((first, number()))

    await with_timeout(recorded.run(late().with_timeout(SHORT).with_retry(2, delay=0).allow_failure()))
    release.set()
    await until(lambda: len(seen) == 3)
    assert sorted(seen) == [(1, 1), (2, 2), (3, 3)]


async def test_a_late_error_of_a_function_is_ignored(
    recorded: RecordedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    release, ended = threading.Event(), threading.Event()

    def work() -> None:
        release.wait(HANG)
        ended.set()
        raise ValueError("late")

    failure = await with_timeout(recorded.run(cs.task(work)().with_timeout(SHORT).allow_failure()))
    assert isinstance(failure, cs.Failure)
    assert isinstance(failure.error, TimeoutError)
    release.set()
    await until(ended.is_set)
    assert "late" not in caplog.text


async def test_a_function_in_the_event_loop_is_not_limited(recorded: RecordedEngine) -> None:
    def work() -> str:
        time.sleep(3 * SHORT)  # the subject of the test
        return "done"

    assert await recorded.run(cs.task(work, threaded=False)().with_timeout(SHORT)) == "done"


async def test_a_timeout_cancels_a_nested_run(recorded: RecordedEngine) -> None:
    @cs.task
    async def outer() -> None:
        await run_nested(wait())

    with pytest.raises(TimeoutError, match=r"^task 'outer' exceeded its timeout"):
        await with_timeout(recorded.run(outer().with_timeout(SHORT)))
    assert recorded.of(TaskExecutionFinished, "wait")[0].result == "cancellation"
    nested, run = recorded.of(RunFinished)
    assert (nested.result, run.result) == ("cancellation", "timeout")


@pytest.mark.parametrize("cancels", ["timeout of the task", "timeout of the program"])
async def test_a_function_of_a_cancelled_nested_run_keeps_its_place(blocked: Blocked, cancels: str) -> None:
    @cs.task
    async def outer(x: int) -> Any:
        if cancels == "timeout of the task":
            return await run_nested(task_of(blocked)(x))
        async with asyncio.timeout(SHORT):
            return await run_nested(task_of(blocked)(x))

    events, executor = MessageBus(), LocalExecutor(max_workers=1)
    engine = Engine(NativeSolver(), executor, events)
    outer_runs = outer.map(x=range(3)).with_retry(2, delay=0).allow_failure()
    if cancels == "timeout of the task":
        outer_runs = outer_runs.with_timeout(SHORT)
    later = cs.task(blocked, name="later")(same(outer_runs))
    run = asyncio.create_task(engine.run(later))
    await until(lambda: blocked.calls == 1)
    await asyncio.sleep(10 * SHORT)
    assert (blocked.calls, blocked.peak) == (1, 1)
    blocked.release.set()
    assert await with_timeout(run) == "late"
    assert blocked.peak == 1
    executor.close()


async def test_a_run_that_exceeds_its_timeout_names_its_running_tasks(
    recorded: RecordedEngine, blocked: Blocked
) -> None:
    target = same([wait(), wait.map(x=range(10)), task_of(blocked)()])
    with pytest.raises(TimeoutError) as caught:
        await with_timeout(recorded.run(target, timeout=0.2))
    text = str(caught.value)
    assert text.startswith("the run of 'same' exceeded its timeout of 0.2 s; running tasks: task ")
    assert " and 7 more. Functions in threads cannot be stopped and still run: 'blocked'" in text
    run = recorded.of(RunFinished)[0]
    assert (run.status, run.result) == ("Failed", "timeout")
    assert run.exception is not None
    assert run.exception.type == "TimeoutError"
    ended = recorded.of(TaskExecutionFinished)
    assert {event.result for event in ended} == {"cancellation"}
    assert {event.error for event in ended} == {"cancelled because the run of 'same' exceeded its timeout of 0.2 s"}


async def test_the_timeout_of_a_run_includes_the_setup_of_resources_and_not_the_teardown(
    recorded: RecordedEngine,
) -> None:
    steps: list[str] = []

    @cs.resource
    async def first() -> AsyncIterator[int]:
        yield 1
        await asyncio.sleep(2 * SHORT)
        steps.append("teardown")

    @cs.resource
    async def second(one: Any = cs.inject(first)) -> AsyncIterator[int]:
        steps.append("setup")
        await asyncio.get_running_loop().create_future()
        yield 2

    def use(value: Any = cs.inject(second)) -> Any:
        return value

    with pytest.raises(TimeoutError, match=r"the run of 'use' exceeded its timeout of 0\.02 s; no task was running"):
        await with_timeout(recorded.run(cs.task(use)(), timeout=SHORT))
    assert steps == ["setup", "teardown"]


async def test_the_first_error_of_a_run_wins_over_its_timeout(recorded: RecordedEngine) -> None:
    async def stubborn() -> None:
        while True:
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                await asyncio.sleep(3 * SHORT)
                raise

    async def fail() -> None:
        await asyncio.sleep(0)
        raise ValueError("first")

    with pytest.raises(ValueError, match="first"):
        await with_timeout(recorded.run(same([cs.task(stubborn)(), cs.task(fail)()]), timeout=2 * SHORT))
    assert recorded.of(RunFinished)[0].result == "failure"


async def test_a_run_without_fail_fast_has_a_timeout_too(recorded: RecordedEngine) -> None:
    def fail() -> None:
        raise ValueError("no")

    target = same([cs.task(fail, threaded=False)(), wait()])
    with pytest.raises(TimeoutError, match=r"running tasks: task 'wait'") as caught:
        await with_timeout(recorded.run(target, timeout=SHORT, fail_fast=False))
    assert caught.value.__notes__ == ["Before that, a task failed: ValueError: no"]
    assert [str(failure.error) for failure in recorded.of(RunFinished)[0].failures] == ["no"]


@pytest.mark.parametrize("limit", ["slot", "resource"])
async def test_a_run_that_waits_for_functions_after_their_timeout_names_them(blocked: Blocked, limit: str) -> None:
    executor = LocalExecutor(max_workers=1)
    engine = Engine(NativeSolver(), executor, MessageBus(), system_resources={"gpu": 1})
    target = task_of(blocked).map(x=[1, 2]).with_timeout(SHORT).allow_failure()
    if limit == "resource":
        target = target.with_constraints(gpu=1)
    with pytest.raises(TimeoutError) as caught:
        await with_timeout(engine.run(target, timeout=50 * SHORT))
    executor.close()
    assert str(caught.value).endswith(
        "; no task was running. Functions in threads cannot be stopped and still run: 'blocked'"
    )


async def test_the_timeout_of_a_run_is_no_allowed_failure(recorded: RecordedEngine) -> None:
    with pytest.raises(TimeoutError, match="the run of 'same'"):
        await with_timeout(recorded.run(same(wait().allow_failure()), timeout=SHORT, fail_fast=False))


async def test_a_run_in_time_returns_its_value(recorded: RecordedEngine) -> None:
    assert await recorded.run(same(3), timeout=NEVER) == 3
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
async def test_a_timeout_of_a_run_is_above_zero(recorded: RecordedEngine, value: float) -> None:
    with pytest.raises(ValueError, match=r"^run: timeout must be a finite number of seconds above 0"):
        await recorded.run(same(1), timeout=value)


async def test_the_messages_of_a_timeout_are_errors() -> None:
    connector = MemoryConnector()
    target = same(wait().with_timeout(SHORT).allow_failure())
    await cs.run_async(target, connector=connector, log_level="OFF")
    bodies = [message.payload["body"] for message in connector.messages]
    (failed,) = [body for body in bodies if body.get("state") == "FAILED"]
    assert failed["metadata"]["result"] == "timeout"
    assert failed["error"] == "TimeoutError: task 'wait' exceeded its timeout of 0.02 s"
    assert bodies[-1]["metadata"]["failures"][0]["type"] == "TimeoutError"


def test_the_process_exits_after_the_end_of_a_function_that_exceeded_its_timeout() -> None:
    source = """
import sys, threading
import cascade as cs

@cs.task
def read():
    sys.stdin.readline()
    print("read")

print(type(cs.run(read().with_timeout(0.05).allow_failure(), log_level="OFF").error).__name__, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "TimeoutError\n"
    assert process.poll() is None
    out, err = process.communicate("line\n", timeout=HANG)
    assert (out, process.returncode) == ("read\n", 0)
    assert err.count("cannot be stopped") == 1


def test_an_option_that_is_not_used_takes_no_memory() -> None:
    from cascade.graph.build import build_graph

    lazy = wait(1)
    assert not {"_timeout", "_allow_failure"} & vars(lazy).keys()
    (node,) = build_graph(lazy).nodes
    assert not hasattr(node, "__dict__")


async def test_a_limit_of_running_tasks_counts_a_function_until_it_ends(blocked: Blocked) -> None:
    controlled = ControlledEngine()
    await controlled.constrain("task/blocked", "concurrency", {"limit": 1})
    run = controlled.start(task_of(blocked).map(x=range(3)).with_timeout(SHORT).allow_failure())
    await until(lambda: [event for event in controlled.events_of(TaskExecutionFinished) if event.map_index == 0])
    assert controlled.reasons == [("blocked", "concurrency")] * 2
    assert blocked.calls == 1
    blocked.release.set()
    first, *others = await with_timeout(run)
    assert isinstance(first, cs.Failure)
    assert others.count("late") + sum(isinstance(other, cs.Failure) for other in others) == 2
    assert blocked.peak == 1


async def test_a_run_may_end_before_a_function_that_a_limit_counts(blocked: Blocked) -> None:
    controlled = ControlledEngine()
    await controlled.constrain("task/blocked", "concurrency", {"limit": 1})
    failure = await with_timeout(controlled.start(task_of(blocked)().with_timeout(SHORT).allow_failure()))
    assert isinstance(failure, cs.Failure)
    await blocked.ended()
    assert await with_timeout(controlled.start(task_of(blocked)())) == "late"


async def test_the_timeout_of_a_task_applies_to_its_calls(recorded: RecordedEngine) -> None:
    limited = cs.task(timeout=SHORT)(wait.func)
    with pytest.raises(TimeoutError, match=r"exceeded its timeout of 0\.02 s"):
        await with_timeout(recorded.run(limited()))
    values = await with_timeout(recorded.run(limited.map(x=[1, 2]).allow_failure()))
    assert all(isinstance(value, cs.Failure) for value in values)


async def test_a_timeout_ends_the_process_of_a_command(recorded: RecordedEngine, tmp_path: Path) -> None:
    command = f"echo $$ > {tmp_path / 'pid'}; exec sleep {NEVER}"
    target = cs.shell(command).with_timeout(1).with_retry(2, delay=0)
    with pytest.raises(TimeoutError, match="task 'shell', attempt 3 of 3"):
        await with_timeout(recorded.run(target))
    process = int((tmp_path / "pid").read_text())
    await until(lambda: not Path(f"/proc/{process}").exists())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
def test_ctrl_c_names_the_functions_that_still_run_after_their_timeout() -> None:
    source = """
import sys, threading
import cascade as cs

@cs.task
def stuck():
    sys.stdin.readline()

@cs.task
async def wait(failure):
    print(type(failure.error).__name__, flush=True)
    await __import__("asyncio").sleep(3600)

cs.run(wait(stuck().with_timeout(0.05).allow_failure()))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", source], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "TimeoutError\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate("line\n", timeout=HANG)
    assert "Run cancelled after" in err
    assert "Traceback" not in err
