"""Each task and each attempt starts with the context variables of the caller of `run`."""

import asyncio
import decimal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextvars import ContextVar, copy_context
from typing import Any

import pytest

import cascade as cs
from cascade.runtime import _map_execution
from cascade.runtime.engine import run_nested
from cascade.testing import MemoryConnector
from tests.lab.extras import needs
from tests.runtime.conftest import RecordedEngine

tenant: ContextVar[str] = ContextVar("tenant", default="none")


def _threaded(function: Callable[..., Any], name: str) -> Any:
    return cs.task(function, name=name)


def _in_loop(function: Callable[..., Any], name: str) -> Any:
    return cs.task(function, name=name, threaded=False)


def _async(function: Callable[..., Any], name: str) -> Any:
    async def call(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        await asyncio.sleep(0)
        return value

    return cs.task(call, name=name)


SHAPES = {"threaded": _threaded, "in loop": _in_loop, "async": _async}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest) -> Any:
    return SHAPES[request.param]


@pytest.fixture(params=SHAPES)
def other_shape(request: pytest.FixtureRequest) -> Any:
    return SHAPES[request.param]


@pytest.fixture
def caller() -> Iterator[None]:
    token = tenant.set("caller")
    yield
    assert tenant.get() == "caller", "the tasks have changed the caller's context"
    tenant.reset(token)


def _change_context(*_: Any) -> str:
    tenant.set("leaked")
    decimal.getcontext().prec = 3
    return "chosen"


def _read_context(*_: Any) -> tuple[str, int]:
    return tenant.get(), decimal.getcontext().prec


CLEAN = ("caller", 28)


@pytest.mark.usefixtures("caller")
async def test_a_successor_sees_the_callers_context(recorded: RecordedEngine, shape: Any, other_shape: Any) -> None:
    change, read = shape(_change_context, "change"), other_shape(_read_context, "read")

    assert await recorded.run(read(read(change()), change())) == CLEAN


@pytest.mark.usefixtures("caller")
async def test_a_routed_branch_and_a_conditional_task_see_the_callers_context(
    recorded: RecordedEngine, shape: Any, other_shape: Any
) -> None:
    change, read = shape(_change_context, "change"), other_shape(_read_context, "read")
    same = cs.task(lambda x: x, name="same")

    assert await recorded.run(same(cs.Router(change(), {"chosen": read()}))) == CLEAN
    assert await recorded.run(read().run_if(change())) == CLEAN


@pytest.mark.usefixtures("caller")
async def test_map_items_beyond_the_window_and_those_that_wait_for_a_resource(
    make_recorded: Callable[..., RecordedEngine], shape: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_map_execution, "MAP_WINDOW", 2)
    recorded = make_recorded(system_resources={"slot": 1})

    def item(i: int) -> Any:
        seen = _read_context()
        _change_context()
        return i, seen

    task, expected = shape(item, "item"), [(i, CLEAN) for i in range(8)]
    assert await recorded.run(task.map(i=list(range(8)))) == expected
    assert await recorded.run(task.map(i=list(range(8))).with_constraints(slot=1)) == expected


@pytest.mark.usefixtures("caller")
async def test_each_attempt_sees_the_callers_context(recorded: RecordedEngine, shape: Any) -> None:
    seen: list[Any] = []

    def flaky(**_: Any) -> None:
        seen.append(_read_context())
        _change_context()
        if len(seen) % 3:
            raise OSError

    await recorded.run(shape(flaky, "flaky")().with_retry(2))
    await recorded.run(shape(flaky, "flaky").map(i=[1]).with_retry(2))

    assert seen == [CLEAN] * 6


@pytest.mark.usefixtures("caller")
async def test_a_task_blocked_by_a_limit_sees_the_callers_context() -> None:
    connector = MemoryConnector()
    topic = "cascade/control/local/default/constraints/global/concurrency"
    await connector.deliver(topic, {"id": "one", "type": "concurrency", "params": {"limit": 1}}, retain=True)

    @cs.task
    async def item(_: int) -> Any:
        seen = _read_context()
        _change_context()
        return seen

    assert await cs.run_async(item.map(_=list(range(5))), connector=connector, log_level="ERROR") == [CLEAN] * 5


async def test_a_precision_that_the_caller_has_set_is_seen_and_not_shared(recorded: RecordedEngine, shape: Any) -> None:
    def divide(*_: Any) -> int:
        context = decimal.getcontext()
        seen, context.prec = context.prec, 3
        return seen

    task = shape(divide, "divide")
    same = cs.task(lambda *seen: seen, name="same")
    with decimal.localcontext() as own:
        own.prec = 50
        assert await recorded.run(same(task(task()), task())) == (50, 50)
        assert decimal.getcontext().prec == 50


async def test_an_asyncio_task_of_a_task_has_the_context_of_the_task(recorded: RecordedEngine) -> None:
    @cs.task
    async def spawn() -> tuple[tuple[str, str], list[str]]:
        tenant.set("own")

        async def child() -> str:
            return tenant.get()

        async def values() -> AsyncIterator[str]:
            yield tenant.get()
            await asyncio.sleep(0)
            yield tenant.get()

        first, second = await asyncio.gather(asyncio.create_task(child()), asyncio.to_thread(tenant.get))
        return (first, second), [value async for value in values()]

    calls: list[Any] = []

    @cs.task
    async def second_attempt() -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise OSError
        return await spawn.func()

    expected = (("own", "own"), ["own", "own"])
    assert await recorded.run(spawn()) == expected
    assert await recorded.run(second_attempt().with_retry(1)) == expected


@pytest.mark.skipif(getattr(sys.flags, "thread_inherit_context", False), reason="each thread has a copy of the context")
async def test_a_thread_of_a_task_has_the_tasks_context_only_as_a_copy(recorded: RecordedEngine) -> None:
    @cs.task
    def start_threads() -> list[str]:
        tenant.set("own")
        seen: list[str] = []
        for run in (lambda function: function(), copy_context().run):
            thread = threading.Thread(target=run, args=[lambda: seen.append(tenant.get())])
            thread.start()
            thread.join()
        return seen

    assert await recorded.run(start_threads()) == ["none", "own"]


async def test_a_second_attempt_is_cancelled_and_timed_out_like_the_first(recorded: RecordedEngine) -> None:
    began, cleaned = asyncio.Event(), []
    calls: list[Any] = []

    @cs.task
    async def work() -> None:
        calls.append(None)
        if len(calls) == 1:
            raise OSError
        try:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0):
                    await asyncio.sleep(60)
            began.set()
            await asyncio.sleep(60)
        finally:
            cleaned.append(tenant.get())

    run = asyncio.create_task(recorded.run(work().with_retry(1)))
    await began.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    assert cleaned == ["none"]


async def test_a_nested_run_starts_with_the_context_of_the_task_that_calls_it(
    recorded: RecordedEngine, shape: Any
) -> None:
    read = shape(tenant.get, "read")

    @cs.task
    async def outer() -> Any:
        tenant.set("outer")
        return await run_nested(read())

    @cs.task
    def in_thread() -> Any:
        tenant.set("thread")
        return cs.run(read(), log_level="ERROR")

    same = cs.task(lambda *seen: seen, name="same")
    assert await recorded.run(same(outer(), in_thread(), read())) == ("outer", "thread", "none")
    assert copy_context().get(tenant) is None


@needs("otel")
@pytest.mark.parametrize("threaded", [True, False])
async def test_a_task_sees_the_callers_baggage(threaded: bool) -> None:
    from opentelemetry import baggage, context

    read = cs.task(lambda: baggage.get_baggage("tenant"), name="read", threaded=threaded)
    token = context.attach(baggage.set_baggage("tenant", "acme"))
    try:
        assert await cs.run_async(read(), log_level="OFF") == "acme"
    finally:
        context.detach(token)
