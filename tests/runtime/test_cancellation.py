"""Cancellation by other code than the run: the run ends with CancelledError, and nothing hangs."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import cascade as cs
from cascade.runtime.events import RunFinished, TaskBlocked, TaskExecutionFinished, TaskExecutionStarted, TaskRetrying
from tests.lab.waiting import HANG, NEVER
from tests.runtime.conftest import RecordedEngine

AsyncioTasks = list[asyncio.Task[Any]]


@cs.task
def gather(*values: Any) -> tuple[Any, ...]:
    return values


def running() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def result_of(run: Awaitable[Any]) -> Any:
    """Return the result of a run. A run that hangs raises another error than a cancellation."""
    task = asyncio.ensure_future(run)
    done, _ = await asyncio.wait({task}, timeout=HANG)
    assert done, "the run hangs"
    return task.result()


async def cancelled(recorded: RecordedEngine, target: Any) -> RunFinished:
    with pytest.raises(asyncio.CancelledError) as caught:
        await result_of(recorded.run(target))
    assert type(caught.value) is asyncio.CancelledError
    (finished,) = recorded.of(RunFinished)
    assert (finished.status, finished.result, finished.exception) == ("Cancelled", "cancellation", None)
    return finished


async def by_itself() -> None:
    running().cancel()
    await asyncio.sleep(0)


async def by_itself_at_its_end() -> int:
    running().cancel()
    return 1


def by_itself_in_the_loop() -> int:
    running().cancel()
    return 1


async def by_an_old_timeout() -> None:
    asyncio.get_running_loop().call_soon(running().cancel)
    await asyncio.Event().wait()


async def by_awaiting_what_is_cancelled() -> None:
    inner = asyncio.ensure_future(asyncio.Event().wait())
    inner.cancel()
    await inner


OWN = [by_itself, by_itself_at_its_end, by_itself_in_the_loop, by_an_old_timeout, by_awaiting_what_is_cancelled]
SHAPES: dict[str, Callable[[Any], Any]] = {
    "task": lambda function: gather(cs.task(function, threaded=False)()),
    "item": lambda function: cs.task(lambda x: function(), name=function.__name__, threaded=False).map(x=[1, 2]),
    "retried": lambda function: cs.task(function, threaded=False)().with_retry(3),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("function", OWN, ids=lambda f: f.__name__)
async def test_a_task_that_is_cancelled_ends_the_run(recorded: RecordedEngine, function: Any, shape: str) -> None:
    finished = await cancelled(recorded, SHAPES[shape](function))
    first = next(e for e in recorded.of(TaskExecutionFinished, function.__name__))
    assert (first.status, first.error, first.exception) == ("Cancelled", "cancelled", None)
    place = f"task '{function.__name__}'" + {"task": "", "item": ", item 0", "retried": ", attempt 1 of 4"}[shape]
    assert finished.error == f"cancelled because {place} was cancelled"


async def test_a_sibling_cancels_a_task(recorded: RecordedEngine) -> None:
    tasks: AsyncioTasks = []
    started = asyncio.Event()

    @cs.task
    async def cancelled_task() -> None:
        tasks.append(running())
        started.set()
        await asyncio.Event().wait()

    @cs.task
    async def canceller() -> None:
        await started.wait()
        tasks[0].cancel("enough")
        await asyncio.Event().wait()

    finished = await cancelled(recorded, gather(cancelled_task(), canceller()))
    assert finished.error == "cancelled because task 'cancelled_task' was cancelled"
    errors = {e.task_name: e.error for e in recorded.of(TaskExecutionFinished)}
    assert errors == {"cancelled_task": "cancelled: enough", "canceller": finished.error}


async def test_tasks_are_cancelled_before_they_start(recorded: RecordedEngine) -> None:
    ran, own = [], set[asyncio.Task[Any]]()

    def cancel_others() -> None:
        others = [task for task in asyncio.all_tasks() - own if "TaskGroup._work" in repr(task.get_coro())]
        assert [task.cancel() for task in others] == [True, True]

    @cs.task
    async def canceller() -> None:
        own.add(running())
        asyncio.get_running_loop().call_soon(cancel_others)
        await asyncio.Event().wait()

    @cs.task(threaded=False)
    def late() -> None:
        ran.append(1)

    await cancelled(recorded, gather(canceller(), *(late() for _ in range(5))))
    assert ran == []


async def test_a_plain_function_in_a_thread_is_cancelled(recorded: RecordedEngine) -> None:
    started, may_finish, ended = threading.Event(), threading.Event(), threading.Event()

    @cs.task
    def cancelled_task() -> None:
        started.set()
        may_finish.wait(HANG)
        ended.set()

    @cs.task
    async def canceller() -> None:
        await asyncio.to_thread(started.wait, HANG)
        for task in asyncio.all_tasks() - {running()}:
            if "TaskGroup._work" in repr(task.get_coro()):
                task.cancel()
        await asyncio.Event().wait()

    await cancelled(recorded, gather(cancelled_task(), canceller()))
    (finished,) = recorded.of(TaskExecutionFinished, "cancelled_task")
    assert (finished.status, finished.error, ended.is_set()) == ("Cancelled", "cancelled", False)
    may_finish.set()
    await asyncio.to_thread(ended.wait, HANG)


@pytest.mark.parametrize("waits_for", ["retry", "resource"])
async def test_a_waiting_task_is_cancelled(make_recorded: Callable[..., RecordedEngine], waits_for: str) -> None:
    recorded = make_recorded(system_resources={"cpu": 1})
    has_waited = asyncio.Event()

    @cs.task
    async def holder() -> None:
        await has_waited.wait()
        for task in asyncio.all_tasks() - {running(), *before}:
            task.cancel()
        await asyncio.Event().wait()

    @cs.task
    async def waiting_task() -> None:
        raise LookupError("again")

    kind = TaskRetrying if waits_for == "retry" else TaskBlocked
    recorded.bus.subscribe(kind, lambda _: has_waited.set())
    target: Any = waiting_task().with_retry(3, delay=NEVER)
    if waits_for == "resource":  # `holder` gets the cpu, because tasks of one stage start in the order of their names
        target = gather(holder().with_constraints(cpu=1), target.with_constraints(cpu=1))
    else:
        target = gather(holder(), target)
    run = asyncio.ensure_future(recorded.run(target))
    before = {running(), run}
    with pytest.raises(asyncio.CancelledError):
        await result_of(run)
    assert recorded.of(RunFinished)[0].result == "cancellation"
    assert len(recorded.of(TaskExecutionFinished, "waiting_task")) == len(
        recorded.of(TaskExecutionStarted, "waiting_task")
    )


async def test_the_setup_of_a_resource_is_cancelled(recorded: RecordedEngine) -> None:
    @cs.resource
    async def broken() -> AsyncIterator[int]:
        await by_itself()
        yield 1

    assert (await cancelled(recorded, cs.task(lambda r=cs.inject(broken): r, name="t")())).error == "cancelled"


async def test_a_nested_run_is_cancelled(recorded: RecordedEngine) -> None:
    outer: AsyncioTasks = []

    @cs.task
    async def starts_nested_run() -> Any:
        outer.append(running())
        return await recorded.run(cancels_outer())

    @cs.task
    async def cancels_outer() -> None:
        outer[0].cancel("by the inner task")
        await asyncio.Event().wait()

    with pytest.raises(asyncio.CancelledError):
        await result_of(recorded.run(gather(starts_nested_run())))
    inner, outermost = recorded.of(RunFinished)
    assert (inner.result, outermost.result) == ("cancellation", "cancellation")
    assert inner.error == recorded.of(TaskExecutionFinished, "cancels_outer")[0].error == "cancelled: by the inner task"


async def test_timeouts_and_task_groups_in_a_task_keep_working(recorded: RecordedEngine) -> None:
    @cs.task
    async def handles() -> str:
        try:
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        except TimeoutError:
            running().cancel()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                running().uncancel()
            return "handled"
        return "not timed out"

    @cs.task
    async def groups() -> list[str]:
        caught: list[str] = []

        async def fail() -> None:
            raise ValueError("one")

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(fail())
                group.create_task(asyncio.Event().wait())
        except* ValueError as errors:
            caught.extend(map(str, errors.exceptions))
        return caught

    assert await result_of(recorded.run(gather(handles(), groups()))) == ("handled", ["one"])


async def test_a_failure_stays_the_first_error_if_the_run_is_cancelled_later(recorded: RecordedEngine) -> None:
    cleaning = asyncio.Event()

    @cs.task
    async def ignores_cancellation() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await asyncio.Event().wait()

    @cs.task
    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("first")

    run = asyncio.ensure_future(recorded.run(gather(ignores_cancellation(), fail())))
    await cleaning.wait()
    run.cancel()
    with pytest.raises(LookupError, match="first"):
        await result_of(run)
    assert recorded.of(RunFinished)[0].error == "LookupError: first"


async def test_a_cancellation_together_with_a_failure_does_not_wait_for_threads(recorded: RecordedEngine) -> None:
    started, may_finish = threading.Event(), threading.Event()

    @cs.task
    def blocks(x: int) -> None:
        started.set()
        may_finish.wait(HANG)

    @cs.task
    async def fail() -> None:
        await asyncio.to_thread(started.wait, HANG)
        raise LookupError("first")

    def cancel(event: TaskExecutionFinished) -> None:
        if event.task_name == "fail":
            asyncio.get_running_loop().call_soon(run.cancel)  # before the failure has woken the run

    recorded.bus.subscribe(TaskExecutionFinished, cancel)
    run = asyncio.ensure_future(recorded.run(gather(blocks.map(x=[1]), fail())))
    with pytest.raises(LookupError, match="first"):
        await result_of(run)
    assert recorded.of(RunFinished)[0].error == "LookupError: first"
    may_finish.set()


async def test_a_failure_waits_for_the_threads_of_a_map(recorded: RecordedEngine) -> None:
    started, may_finish, ended = threading.Event(), threading.Event(), []

    @cs.task
    def blocks(x: int) -> None:
        started.set()
        may_finish.wait(HANG)
        ended.append(x)

    @cs.task
    async def fail() -> None:
        await asyncio.to_thread(started.wait, HANG)
        raise LookupError("first")

    def continue_later(event: TaskExecutionFinished) -> None:
        if event.task_name == "fail":
            asyncio.get_running_loop().call_later(0.01, may_finish.set)

    recorded.bus.subscribe(TaskExecutionFinished, continue_later)
    with pytest.raises(LookupError, match="first"):
        await result_of(recorded.run(gather(blocks.map(x=[1]), fail())))
    assert ended == [1]


async def test_tasks_carry_the_reason_that_the_run_is_cancelled_with(recorded: RecordedEngine) -> None:
    started = asyncio.Event()
    seen: list[Any] = []

    @cs.task
    async def forever() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            seen.append(error.args)
            raise

    run = asyncio.ensure_future(recorded.run(gather(forever())))
    await started.wait()
    run.cancel("the client has left")
    with pytest.raises(asyncio.CancelledError):
        await result_of(run)
    assert seen == [("cancelled: the client has left",)]
    assert recorded.of(TaskExecutionFinished)[0].error == recorded.of(RunFinished)[0].error == seen[0][0]


async def test_errors_of_siblings_are_notes_on_the_first_one(recorded: RecordedEngine) -> None:
    @cs.task
    async def cleans_up(x: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise RuntimeError(f"cleanup {x} failed")

    @cs.task
    async def fail() -> None:
        await asyncio.sleep(0)
        raise LookupError("first")

    with pytest.raises(LookupError) as caught:
        await result_of(recorded.run(gather(cleans_up.map(x=[7]), fail())))
    later = "Later, task 'cleans_up', item 0 failed: RuntimeError: cleanup 7 failed"
    assert sorted(caught.value.__notes__) == [later, "task 'fail'"]


def test_the_reason_of_a_host_that_looks_like_a_signal_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    started, released = threading.Event(), threading.Event()

    @cs.task
    def blocks() -> None:
        started.set()
        released.wait()

    async def main() -> None:
        run = asyncio.create_task(cs.run_async(blocks(), log_level="ERROR"))
        await asyncio.to_thread(started.wait)
        run.cancel("cancelled by the user")
        with pytest.raises(asyncio.CancelledError):
            await run

    try:
        asyncio.run(main())
    finally:
        released.set()
    assert [line.split(" after ")[0] for line in capsys.readouterr().err.splitlines()] == ["🛑 Run cancelled"]
