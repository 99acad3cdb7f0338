"""A run continues after failures: `allow_failure()` and `fail_fast=False`."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import cascade as cs
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.solvers.native import NativeSolver
from cascade.connectors.memory import MemoryConnector
from cascade.messaging.bus import MessageBus as Messages
from cascade.messaging.bus import MessageStore
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine, run_nested
from cascade.runtime.events import RunFinished, TaskExecutionFinished, TaskExecutionStarted, TaskSkipped
from cascade.runtime.subscribers import MAX_FAILURES_SHOWN, HumanReadableLogSubscriber
from cascade.telemetry.limits import MAX_FAILURES
from tests.lab.waiting import with_timeout
from tests.runtime.conftest import RecordedEngine


@cs.task(threaded=False)
def load(x: int) -> int:
    if x < 0:
        raise ValueError(f"negative: {x}")
    return x


@cs.task
def in_thread(x: int) -> int:
    if x < 0:
        raise ValueError(f"negative: {x}")
    return x


@cs.task
async def asynchronous(x: int) -> int:
    await asyncio.sleep(0)
    if x < 0:
        raise ValueError(f"negative: {x}")
    return x


@cs.task
async def nested(x: int) -> int:
    return await run_nested(load(x))


@cs.task(threaded=False)
def same(value: Any) -> Any:
    return value


@cs.task(threaded=False)
def both(a: Any, b: Any) -> tuple[Any, Any]:
    return a, b


KINDS = pytest.mark.parametrize("task", [load, in_thread, asynchronous, nested], ids=lambda task: task.name)


@KINDS
async def test_the_failure_of_a_task_is_the_argument_of_its_consumer(recorded: RecordedEngine, task: Any) -> None:
    target = task(-1).allow_failure()
    failure = await recorded.run(same(target))
    assert isinstance(failure, cs.Failure)
    assert (failure.task_name, failure.task_id, failure.map_index, failure.attempts) == (
        task.name,
        target._uuid,
        None,
        1,
    )
    assert (type(failure.error), str(failure.error)) == (ValueError, "negative: -1")
    (ended,) = recorded.of(TaskExecutionFinished, task.name)
    assert (ended.status, ended.result, ended.error, ended.is_allowed) == (
        "Failed",
        "failure",
        "ValueError: negative: -1",
        True,
    )
    run = recorded.of(RunFinished)[-1]
    assert (run.status, run.result, run.error, run.failures) == ("Succeeded", "success", None, (failure,))
    assert recorded.of(TaskExecutionFinished, "same")[0].status == "Succeeded"


@KINDS
async def test_each_failed_item_is_a_failure_in_the_list(recorded: RecordedEngine, task: Any) -> None:
    values = await recorded.run(same(task.map(x=[1, -2, 3, -4]).allow_failure()))
    assert [v if isinstance(v, int) else v.map_index for v in values] == [1, 1, 3, 3]
    assert [str(values[index].error) for index in (1, 3)] == ["negative: -2", "negative: -4"]
    (ended,) = recorded.of(TaskExecutionFinished, f"map({task.name})")
    assert (ended.status, ended.result) == ("Succeeded", "success")
    assert ended.counts is not None
    assert (ended.counts.done, ended.counts.failed) == (2, 2)
    items = {event.task_id: event for event in recorded.of(TaskExecutionFinished, task.name) if event.map_id}
    assert [items[values[index].task_id].status for index in (1, 3)] == ["Failed", "Failed"]
    assert set(recorded.of(RunFinished)[-1].failures) == {values[1], values[3]}


async def test_a_value_without_a_failure_is_unchanged(recorded: RecordedEngine) -> None:
    assert await recorded.run(both(load(1).allow_failure(), load.map(x=[1, 2]).allow_failure())) == (1, [1, 2])
    assert recorded.of(RunFinished)[0].failures == ()


async def test_a_failure_counts_all_attempts(recorded: RecordedEngine) -> None:
    once = load(-1).with_retry(2, delay=0).allow_failure()
    items = asynchronous.map(x=[-1]).with_retry(1, delay=0).allow_failure()
    failure, (item,) = await recorded.run(both(once, items))
    assert (failure.attempts, item.attempts) == (3, 2)


async def test_a_task_that_fails_before_its_call_has_no_attempts(recorded: RecordedEngine) -> None:
    @cs.task(threaded=False)
    def amount() -> int:
        return -1

    failure = await recorded.run(same(load(1).with_constraints(cpu=amount()).allow_failure()))
    assert (failure.attempts, type(failure.error)) == (0, ValueError)
    assert recorded.of(TaskExecutionFinished, "load")[0].result == "error"


async def test_a_failure_of_the_map_itself_is_its_value(recorded: RecordedEngine) -> None:
    pair = cs.task(lambda a, b: (a, b), name="pair", threaded=False)
    failure = await recorded.run(same(pair.map(a=same([1, 2]), b=same([1])).allow_failure()))
    assert isinstance(failure, cs.Failure)
    assert (failure.task_name, failure.map_index, failure.attempts) == ("map(pair)", None, 0)
    assert "mismatched lengths" in str(failure.error)


async def test_a_failure_is_no_list_of_a_map(recorded: RecordedEngine) -> None:
    failing: Any = cs.task(load.func, name="same", threaded=False)(-1).allow_failure()
    with pytest.raises(TypeError, match=r"map\(load\): 'x' must be a list, but the task 'same' .* failed") as caught:
        await recorded.run(load.map(x=failing))
    assert str(caught.value.__cause__) == "negative: -1"


async def test_a_failed_condition_is_false(recorded: RecordedEngine) -> None:
    with pytest.raises(cs.DependencyMissingError, match="its condition 'load' was false"):
        await recorded.run(same(1).run_if(load(-1).allow_failure()))
    assert [event.reason for event in recorded.of(TaskSkipped)] == ["ConditionFalse"]


async def test_the_error_of_a_router_names_the_selector_that_failed(recorded: RecordedEngine) -> None:
    routes = {1: same("one"), False: same("false")}
    with pytest.raises(
        ValueError, match=r"no matching route found, because the selector 'load' .* ValueError"
    ) as caught:
        await recorded.run(same(cs.Router(load(-1).allow_failure(), routes)))
    assert str(caught.value.__cause__) == "negative: -1"
    assert [event.reason for event in recorded.of(TaskSkipped)] == ["Pruned", "Pruned"]


async def test_a_router_delivers_the_failure_of_a_route(recorded: RecordedEngine) -> None:
    target = same(cs.Router(same("a"), {"a": load(-1).allow_failure(), "b": load(-2).allow_failure()}))
    assert str((await recorded.run(target)).error) == "negative: -1"


class Cache:
    def __init__(self) -> None:
        self.saved: list[Any] = []

    def check(self, task_id: str, inputs: dict[str, Any]) -> None:
        return None

    def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None:
        self.saved.append(output)


async def test_a_failure_is_never_saved_in_a_cache(recorded: RecordedEngine) -> None:
    cache = Cache()
    failed, items = load(-1).with_cache(cache).allow_failure(), load.map(x=[1, -1]).with_cache(cache).allow_failure()
    await recorded.run(both(same(failed).with_cache(cache), same(items).with_cache(cache)))
    assert cache.saved == [1]


@pytest.mark.parametrize("error", [SystemExit(3), asyncio.CancelledError("own")], ids=["SystemExit", "CancelledError"])
@pytest.mark.parametrize("fail_fast", [True, False])
async def test_other_errors_than_exceptions_end_the_run(
    recorded: RecordedEngine, error: BaseException, *, fail_fast: bool
) -> None:
    def stop(x: int) -> None:
        raise error

    stopping = cs.task(stop, threaded=False)
    for target in (stopping(1).allow_failure(), stopping.map(x=[1]).allow_failure()):
        with pytest.raises(type(error)):
            await recorded.run(same(target), fail_fast=fail_fast)
        assert recorded.of(RunFinished)[-1].failures == ()


async def test_a_cancellation_is_not_allowed(recorded: RecordedEngine) -> None:
    started = asyncio.Event()

    @cs.task
    async def wait(x: int) -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    for target in (wait(1).allow_failure(), wait.map(x=[1]).allow_failure()):
        started.clear()
        run = asyncio.create_task(recorded.run(same(target), fail_fast=False))
        await with_timeout(started.wait())
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await with_timeout(run)
        assert recorded.of(RunFinished)[-1].result == "cancellation"


async def test_a_resource_that_cannot_be_set_up_ends_the_run_before_its_tasks(recorded: RecordedEngine) -> None:
    @cs.resource
    def broken() -> Iterator[int]:
        raise OSError("no disk")
        yield 1

    def use(value: Any = cs.inject(broken)) -> Any:
        return value

    with pytest.raises(OSError, match="no disk"):
        await recorded.run(both(cs.task(use)().allow_failure(), load(1)), fail_fast=False)
    assert recorded.of(TaskExecutionStarted) == []


async def test_a_run_without_fail_fast_finishes_all_independent_tasks(recorded: RecordedEngine) -> None:
    calls: list[Any] = []

    def append(value: Any) -> Any:
        calls.append(value)
        return value

    note = cs.task(append, name="note", threaded=False)
    with pytest.raises(ValueError, match="negative: -1") as caught:
        await recorded.run(
            same([load(-1), note(load(1)), note(same(load(-2))), note(2), load.map(x=[-3, 4])]), fail_fast=False
        )
    assert sorted(calls) == [1, 2]
    assert caught.value.__notes__ == [
        "task 'load'",
        "Later, task 'load' failed: ValueError: negative: -2",
        "Later, task 'load', item 0 failed: ValueError: negative: -3",
    ]
    skipped = {event.task_id: event for event in recorded.of(TaskSkipped)}
    assert [event.task_name for event in skipped.values()] == ["same", "note", "same"]
    assert {event.reason for event in skipped.values()} == {"UpstreamFailed"}
    failed = {event.task_id for event in recorded.of(TaskExecutionFinished) if event.status == "Failed"}
    assert all(event.decided_by[0] in failed for event in skipped.values())
    run = recorded.of(RunFinished)[0]
    assert (run.status, run.result, run.error) == ("Failed", "failure", "ValueError: negative: -1")
    assert [str(failure.error) for failure in run.failures] == ["negative: -1", "negative: -2", "negative: -3"]
    assert recorded.of(TaskExecutionFinished, "load")[-1].map_index == 1


@KINDS
async def test_all_items_of_a_map_run_before_the_run_raises(recorded: RecordedEngine, task: Any) -> None:
    with pytest.raises(ValueError, match="negative") as caught:
        await recorded.run(same(task.map(x=[1, -1, 2, -2, 3])), fail_fast=False)
    ended = recorded.of(TaskExecutionFinished, f"map({task.name})")[0]
    assert (ended.status, ended.error) == ("Failed", None)
    assert ended.counts is not None
    assert (ended.counts.done, ended.counts.failed) == (3, 2)
    assert [event.reason for event in recorded.of(TaskSkipped)] == ["UpstreamFailed"]
    assert len([note for note in caught.value.__notes__ if note.startswith("Later, ")]) == 1


async def test_conditions_and_routes_of_a_failed_task_skip_their_consumers(recorded: RecordedEngine) -> None:
    conditional = same("c").run_if(load(-1))
    selected = same(cs.Router(load(-2), {1: same("r1"), 2: same("r2")}))
    routed = same(cs.Router(same("x"), {"x": load(-3), "y": same("y")}))
    with pytest.raises(ValueError, match="negative: -1"):
        await recorded.run(same([conditional, selected, routed]), fail_fast=False)
    assert [event.reason for event in recorded.of(TaskSkipped, "same")].count("UpstreamFailed") == 4
    assert [event.reason for event in recorded.of(TaskSkipped, "same")].count("Pruned") == 3


class NoTruth:
    def __bool__(self) -> bool:
        raise RuntimeError("no truth")


async def test_the_error_of_a_condition_is_a_failure_of_its_task(recorded: RecordedEngine) -> None:
    condition = same(NoTruth())
    failure = await recorded.run(same(load(1).run_if(condition).allow_failure()))
    assert (type(failure.error), failure.attempts) == (TypeError, 0)
    assert recorded.of(TaskExecutionFinished, "load")[0].result == "error"
    with pytest.raises(TypeError, match="has no truth value"):
        await recorded.run(both(load(1).run_if(condition), load(2)), fail_fast=False)
    ended = sorted(event.status for event in recorded.of(TaskExecutionFinished, "load"))
    assert ended == ["Failed", "Failed", "Succeeded"]


async def test_a_factory_that_raises_is_the_failure_of_its_item(recorded: RecordedEngine) -> None:
    class Factory:
        name = "made"

        def __call__(self, x: int) -> Any:
            return load(1 // x)

        def map(self, **lists: Any) -> Any:
            raise NotImplementedError

    target = load.map(x=[1, 0])
    target.factory = Factory()
    values: list[Any] = [*await recorded.run(target.allow_failure())]
    one, failure = values
    assert (one, failure.task_name, failure.map_index, failure.attempts) == (1, "made", 1, 0)
    assert isinstance(failure.error, ZeroDivisionError)


async def test_a_cancellation_after_a_failure_is_raised_as_a_cancellation(recorded: RecordedEngine) -> None:
    started = asyncio.Event()

    @cs.task
    async def wait(_: Any) -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    run = asyncio.create_task(recorded.run(both(load(-1), wait(load(-2).allow_failure())), fail_fast=False))
    await with_timeout(started.wait())
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await with_timeout(run)
    finished = recorded.of(RunFinished)[0]
    assert (finished.result, len(finished.failures)) == ("cancellation", 2)


async def test_one_exception_object_of_many_items_has_a_short_traceback(recorded: RecordedEngine) -> None:
    error = ConnectionError("down")

    def connect(x: int) -> None:
        raise error

    await recorded.run(cs.task(connect, threaded=False).map(x=[1] * 200).allow_failure())
    trace, frames = error.__traceback__, 0
    while trace is not None:
        trace, frames = trace.tb_next, frames + 1
    assert frames < 10


class Value:
    pass


@pytest.mark.parametrize("task", [load, in_thread, asynchronous], ids=lambda task: task.name)
async def test_failures_keep_the_arguments_of_a_limited_number_of_calls(task: Any) -> None:
    made: list[weakref.ref[Value]] = []

    def value(x: int) -> Value:
        made.append(weakref.ref(found := Value()))
        return found

    function = task.func
    fail = cs.task(
        (lambda v: function(-1)) if task is not asynchronous else awaiting(function),
        name="fail",
        threaded=task.threaded,
    )
    count = 3 * MAX_FAILURES
    events = MessageBus()
    engine = Engine(NativeSolver(), LocalExecutor(), events)
    values = await engine.run(fail.map(v=cs.task(value, threaded=False).map(x=range(count))).allow_failure())
    gc.collect()
    assert len(values) == len(made) == count
    assert sum(reference() is not None for reference in made) <= MAX_FAILURES
    assert sum(v.error.__traceback__ is not None for v in values) == MAX_FAILURES


def awaiting(function: Callable[[int], Any]) -> Callable[[Any], Any]:
    async def fail(v: Any) -> Any:
        return await function(-1)

    return fail


async def test_the_last_message_lists_the_first_failures() -> None:
    connector = MemoryConnector()
    target = load.map(x=[-1] * (MAX_FAILURES + 5)).with_label(lambda x: f"row {x}").allow_failure()
    await cs.run_async(same([target, load(-9).allow_failure()]), connector=connector, log_level="OFF")
    stopped = connector.messages[-1].payload["body"]
    assert (stopped["status"], stopped["error"], stopped["metadata"]["result"]) == ("Succeeded", None, "success")
    assert stopped["metadata"]["counts"]["failed"] == MAX_FAILURES + 6
    listed = stopped["metadata"]["failures"]
    assert len(listed) == MAX_FAILURES
    item = next(failure for failure in listed if failure.get("map_index") == 3)
    assert item["label"] == "row -1"
    assert (item["type"], item["message"], item["task_name"]) == ("ValueError", "negative: -1", "load")


async def test_the_text_of_a_failure_is_masked_and_short() -> None:
    def leak() -> None:
        raise ValueError("password=hunter2 " + "x" * 5_000)

    connector = MemoryConnector()
    await cs.run_async(cs.task(leak)().allow_failure(), connector=connector, log_level="OFF")
    (failure,) = connector.messages[-1].payload["body"]["metadata"]["failures"]
    assert "hunter2" not in failure["message"]
    assert len(failure["message"].encode()) <= 500


STORE = MessageStore()


class Lines:
    """A renderer that stores the texts."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.store = STORE

    def render(self, msg_id: str, level: str, **values: Any) -> None:
        self.texts.append(f"{level} {self.store.get(msg_id, **values)}")


@pytest.mark.parametrize("level", ["DEBUG", "INFO", "WARNING", "ERROR"])
async def test_the_terminal_prints_a_limited_number_of_failures_and_their_count(level: str) -> None:
    lines, bus = Lines(), MessageBus()
    messages = Messages(lines.store)
    messages.set_renderer(lines)
    HumanReadableLogSubscriber(bus, min_level=level, messages=messages)
    engine = Engine(NativeSolver(), LocalExecutor(), bus)
    many = MAX_FAILURES_SHOWN * 3
    target = same([load.map(x=[-1] * many).allow_failure(), load(1)])
    assert len((await engine.run(target))[0]) == many
    shown = [text for text in lines.texts if "Failed load[" in text]
    assert len(shown) == MAX_FAILURES_SHOWN
    assert shown[0].startswith("warning ⚠️  Failed load[0] after 0.0")
    assert shown[0].endswith("s, the run continues: ValueError: negative: -1")
    assert lines.texts.count("warning ⚠️  Further failures of load are counted, and not printed") == 1
    if level in {"DEBUG", "INFO"}:
        assert lines.texts[-1].startswith("info ✅ Run finished in ")
        assert lines.texts[-1].endswith(f"s, failed tasks: {many}")
    with pytest.raises(ValueError, match="negative"):
        await engine.run(same([load(-1), load(-2)]), fail_fast=False)
    assert lines.texts[-1].startswith("error ❌ Run failed after ")
    assert lines.texts[-1].endswith("s, failed tasks: 2: ValueError: negative: -1")


@KINDS
async def test_a_failure_does_not_keep_the_values_of_its_run(task: Any) -> None:
    made: list[weakref.ref[Value]] = []

    def value() -> Value:
        made.append(weakref.ref(found := Value()))
        return found

    def use(failure: Any, found: Value) -> Any:
        return failure

    engine = Engine(NativeSolver(), LocalExecutor(), MessageBus())
    target = cs.task(use, threaded=False)(task(-1).allow_failure(), cs.task(value, threaded=False)())
    failure = await engine.run(target)
    assert isinstance(failure, cs.Failure)
    assert failure.error.__traceback__ is not None
    gc.collect()
    assert [reference() for reference in made] == [None]
