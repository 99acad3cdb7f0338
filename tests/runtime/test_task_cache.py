"""Caches of tasks: the cache of a run, what a cache receives, and caches that fail."""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest

import cascade as cs
from cascade.runtime.engine import run_nested
from cascade.runtime.events import TaskExecutionStarted, TaskSkipped
from cascade.spec.caching import CacheError, CacheHit, TaskCall
from cascade.spec.failure import Failure
from tests.lab.waiting import with_timeout
from tests.runtime.conftest import RecordedEngine


class MemoryCache:
    """A result cache by name and inputs. The event loop has another turn before each result."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.calls: list[TaskCall] = []

    def look_up(self, call: TaskCall) -> Awaitable[CacheHit | None]:
        call.key = f"{call.task_name} {call.inputs!r}"
        self.calls.append(call)
        return self._look_up(call)

    async def _look_up(self, call: TaskCall) -> CacheHit | None:
        await asyncio.sleep(0)
        return CacheHit(self.values[call.key]) if call.key in self.values else None

    async def store(self, call: TaskCall, value: Any) -> None:
        await asyncio.sleep(0)
        self.values[call.key] = value


def started(recorded: RecordedEngine) -> list[str]:
    return [event.task_name for event in recorded.of(TaskExecutionStarted) if event.kind == "task"]


def hits(recorded: RecordedEngine) -> list[str]:
    return [event.task_name for event in recorded.of(TaskSkipped) if event.reason == "CacheHit"]


@cs.task
async def nothing() -> None: ...


@cs.task
def double(x: int) -> int:
    return 2 * x


@cs.task
async def total(xs: list[int]) -> int:
    return sum(xs)


async def test_the_cache_of_a_run_is_that_of_all_its_tasks_and_map_items(recorded: RecordedEngine) -> None:
    cache = MemoryCache()
    target = total(double.map(x=[1, 2]))
    assert [await recorded.run(target, cache=cache), await recorded.run(target, cache=cache)] == [6, 6]
    assert sorted(started(recorded)) == ["double", "double", "total"]
    assert sorted(hits(recorded)) == ["double", "double", "total"]
    assert {call.function for call in cache.calls} == {double.func, total.func}


async def test_none_is_a_value(recorded: RecordedEngine) -> None:
    cache = MemoryCache()
    for _ in range(2):
        value: object = await recorded.run(nothing(), cache=cache)
        assert value is None
    assert (started(recorded), hits(recorded)) == (["nothing"], ["nothing"])


async def test_a_task_has_its_own_cache_or_none(recorded: RecordedEngine) -> None:
    of_run, of_task = MemoryCache(), MemoryCache()
    target = total([double(1).with_cache(of_task), double(2).with_cache(None)])
    for _ in range(2):
        assert await recorded.run(target, cache=of_run) == 6
    assert list(of_run.values) == ["total {'0': [2, 4]}"]
    assert list(of_task.values) == ["double {'0': 1}"]
    assert sorted(started(recorded)) == ["double", "double", "double", "total"]


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_stored_value_needs_no_resources(make_recorded: Callable[..., RecordedEngine], retries: int) -> None:
    recorded, cache, skipped = make_recorded(system_resources={"db": 1}), MemoryCache(), asyncio.Event()
    recorded.bus.subscribe(TaskSkipped, lambda _: skipped.set())

    @cs.task(constraints={"db": 1}, cache=False)
    async def before() -> int:
        await skipped.wait()
        return 1

    @cs.task(constraints={"db": 1}, retries=retries)
    async def cached() -> int:
        return 2

    assert await recorded.run(cached(), cache=cache) == 2
    assert await with_timeout(recorded.run(total([before(), cached()]), cache=cache)) == 3


@pytest.mark.parametrize("retries", [0, 1])
async def test_a_task_whose_value_is_being_stored_holds_no_resources(
    make_recorded: Callable[..., RecordedEngine], retries: int
) -> None:
    recorded, is_after_run = make_recorded(system_resources={"db": 1}), asyncio.Event()

    class SlowCache(MemoryCache):
        async def store(self, call: TaskCall, value: Any) -> None:
            await is_after_run.wait()

    @cs.task(constraints={"db": 1}, retries=retries, cache=SlowCache())
    async def cached() -> int:
        return 1

    @cs.task(constraints={"db": 1})
    async def later() -> int:
        is_after_run.set()
        return 2

    assert await with_timeout(recorded.run(total([cached(), later()]))) == 3


async def test_a_generator_function_without_a_cache_runs_in_a_run_with_one(recorded: RecordedEngine) -> None:
    @cs.task
    def numbers() -> Any:
        yield from (1, 2)

    assert await recorded.run(total(numbers().with_cache(None)), cache=MemoryCache()) == 3


async def test_runs_that_a_task_starts_have_the_cache_of_its_run(recorded: RecordedEngine) -> None:
    cache, own = MemoryCache(), MemoryCache()

    @cs.task
    async def outer(**options: Any) -> int:
        nested = await run_nested(double(1))
        return nested + await cs.run_async(double(2), log_level="OFF", **options)

    @cs.task
    def in_thread() -> int:
        return cs.run(double(3), log_level="OFF")

    assert await recorded.run(outer(), cache=cache) == 6
    assert await recorded.run(in_thread(), cache=cache) == 6
    assert await recorded.run(outer(cache=own).with_cache(None), cache=cache) == 6
    assert sorted(key for key in cache.values if "double" in key) == [f"double {{'0': {x}}}" for x in (1, 2, 3)]
    assert list(own.values) == ["double {'0': 2}"]


async def test_a_cached_task_is_retried_until_it_has_a_value(recorded: RecordedEngine) -> None:
    calls: list[int] = []

    @cs.task
    def flaky(x: int) -> int:
        calls.append(x)
        if len(calls) < 3:
            raise ConnectionError("later")
        return x

    cache = MemoryCache()
    for target in (flaky(1).with_retry(3), flaky(1).with_retry(3), flaky.map(x=[2]).with_retry(1)):
        await recorded.run(target, cache=cache)
    assert calls == [1, 1, 1, 2]
    assert hits(recorded) == ["flaky"]


async def test_a_failure_is_not_stored(recorded: RecordedEngine) -> None:
    @cs.task
    def same(x: Any) -> Any:
        return x

    cache = MemoryCache()
    failure = Failure(ValueError("no"), "load", "id", None, 1)
    assert await recorded.run(same(failure), cache=cache) is failure
    assert cache.values == {}


class Pair(NamedTuple):
    first: Any
    second: Any


@pytest.mark.parametrize(
    "shape",
    [
        lambda failure: [1, failure],
        lambda failure: {"rows": [1], "more": ({"x": [failure]},)},
        lambda failure: Pair(1, [failure]),
        lambda failure: [*range(100), [failure]],
    ],
    ids=["list", "nested", "named tuple", "long"],
)
async def test_a_value_with_a_failure_is_neither_stored_nor_looked_up(
    recorded: RecordedEngine, shape: Callable[[Any], Any]
) -> None:
    @cs.task
    def same(x: Any) -> Any:
        return x

    @cs.task
    async def nested() -> Any:
        return shape(await run_nested(cs.task(lambda: 1 / 0, name="divide", threaded=False)().allow_failure()))

    cache = MemoryCache()
    await recorded.run(nested(), cache=cache)
    assert (len(cache.calls), cache.values) == (2, {})
    await recorded.run(same(shape(Failure(ValueError("no"), "load", "id", None, 1))), cache=cache)
    assert (len(cache.calls), cache.values) == (2, {})


async def test_a_value_that_contains_itself_is_stored(recorded: RecordedEngine) -> None:
    @cs.task
    def circle() -> Any:
        found: list[Any] = [1]
        found.append({"again": found})
        return found

    cache = MemoryCache()
    await recorded.run(circle(), cache=cache)
    assert len(cache.values) == 1


class AsyncPolicy:
    async def check(self, task_id: str, inputs: dict[str, Any]) -> Any:
        return "a value that is not awaited"

    async def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None:
        raise AssertionError


async def test_a_policy_with_coroutine_functions_is_a_miss_with_a_warning_that_names_the_fix(
    recorded: RecordedEngine, caplog: pytest.LogCaptureFixture
) -> None:
    cache: Any = AsyncPolicy()
    assert await recorded.run(double(2).with_cache(cache)) == 4
    assert caplog.messages == [
        f"The cache of task 'double' could not {action}: {method} is a coroutine function; a cache that waits has the "
        "methods look_up and store"
        for action, method in [("look up the value, so the task runs", "check"), ("save its value", "save")]
    ]


class NamedCache:
    """A cache policy whose methods receive the name of the task."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def check(self, task_id: str, inputs: dict[str, Any], *, task_name: str) -> Any:
        self.seen.append(("check", task_name))

    def save(self, task_id: str, inputs: dict[str, Any], output: Any, *, task_name: str) -> None:
        self.seen.append(("save", task_name, output))


async def test_a_policy_receives_the_name_of_the_task(recorded: RecordedEngine) -> None:
    cache = NamedCache()
    await recorded.run(double.map(x=[4]).with_cache(cache))
    assert cache.seen == [("check", "double"), ("save", "double", 8)]


def failing(error: BaseException) -> Any:
    class Broken:
        def check(self, task_id: str, inputs: dict[str, Any]) -> Any:
            raise error

        def save(self, task_id: str, inputs: dict[str, Any], output: Any) -> None:
            raise error

    return Broken()


async def failing_later(call: TaskCall, *_: Any) -> Any:
    raise CacheError(f"no disk for {call.task_name}")


class BrokenLater:
    look_up = store = staticmethod(failing_later)


@pytest.mark.parametrize(
    ("cache", "reason"),
    [(failing(OSError("no disk")), ""), (failing(SystemExit(3)), ""), (BrokenLater(), ": no disk for double")],
    ids=["now", "exit", "later"],
)
async def test_a_cache_that_fails_is_a_miss_with_one_warning_for_a_task_name(
    recorded: RecordedEngine, caplog: pytest.LogCaptureFixture, cache: Any, reason: str
) -> None:
    assert await recorded.run(total(double.map(x=[1, 2, 3])), cache=cache) == 12
    of_double = [record for record in caplog.records if "double" in record.message]
    assert [re.sub(r"item \d", "item", record.message) for record in of_double] == [
        f"The cache of task 'double', item could not look up the value, so the task runs{reason}",
        f"The cache of task 'double', item could not save its value{reason}",
    ]
    assert {record.levelno for record in of_double} == {logging.WARNING}
    assert all((record.exc_info is None) is bool(reason) for record in of_double)
    assert len(caplog.records) == 4
    await recorded.run(double(1), cache=cache)
    assert len(caplog.records) == 6


@pytest.mark.parametrize(
    ("cache", "named"),
    [
        (5, "got int"),
        (".cascade", r"got str; for a directory, give cs\.DiskCache\(directory\)"),
        (cs.DiskCache, r"got the class DiskCache; make one: DiskCache\(…\)"),
    ],
)
async def test_an_object_that_is_no_cache_is_refused(recorded: RecordedEngine, cache: Any, named: str) -> None:
    text = "cache must be a cs.DiskCache, another object with the methods check and save, or None, " + named
    with pytest.raises(TypeError, match="run: " + text):
        await recorded.run(double(1), cache=cache)
    with pytest.raises(TypeError, match="Task 'double': " + text):
        double(1).with_cache(cache)


async def test_the_value_of_a_cancelled_run_is_stored(make_recorded: Callable[..., RecordedEngine]) -> None:
    """The store of a disk continues in its thread."""
    recorded, stored = make_recorded(), asyncio.Event()
    from cascade.runtime.threads import to_end_in_thread

    class Slow(MemoryCache):
        async def store(self, call: TaskCall, value: Any) -> None:
            running.cancel()
            loop = asyncio.get_running_loop()
            await to_end_in_thread(loop.call_soon_threadsafe, stored.set)
            self.values[call.key] = value

    running = asyncio.ensure_future(recorded.run(double(1), cache=Slow()))
    with pytest.raises(asyncio.CancelledError):
        await running
    await stored.wait()
