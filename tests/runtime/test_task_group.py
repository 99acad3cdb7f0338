"""Asyncio tasks and contexts of the coroutines of one run."""

import asyncio
from collections.abc import Coroutine
from contextvars import Context, ContextVar, copy_context
from typing import Any

import cascade as cs
from cascade.runtime.task_context import rest_in_context
from tests.runtime.conftest import RecordedEngine

variable = ContextVar("variable", default=0)


@cs.task
async def quick(*_: Any) -> tuple[Any, int]:
    before = variable.get()
    variable.set(before + 1)
    return asyncio.current_task(), before


@cs.task
async def slow(*_: Any) -> tuple[Any, int]:
    before = variable.get()
    variable.set(before + 1)
    await asyncio.sleep(0)
    assert variable.get() == before + 1
    return asyncio.current_task(), before


async def test_coroutines_that_do_not_suspend_share_an_asyncio_task_and_no_context(recorded: RecordedEngine) -> None:
    first: Any = quick()
    second: Any = quick(first)
    found = await recorded.run(cs.task(lambda *found: found, name="all", threaded=False)(first, second, quick(second)))
    assert len({task for task, _ in found}) == 1
    assert found[0][0] is not asyncio.current_task()
    assert [value for _, value in found] == [0, 0, 0]


async def test_coroutines_that_suspend_have_an_asyncio_task_for_themselves(recorded: RecordedEngine) -> None:
    first: Any = quick()
    second: Any = slow(first)
    calls: list[Any] = [second, quick(second), *(slow() for _ in range(100))]
    found = await recorded.run(cs.task(lambda *found: found, name="all", threaded=False)(*calls))
    assert len({task for task, _ in found}) == len(calls)
    assert [value for _, value in found] == [0] * len(calls)


async def test_many_coroutines_wait_at_once_beside_some_that_do_not_suspend(recorded: RecordedEngine) -> None:
    barrier, waiting = asyncio.Event(), 0

    @cs.task
    async def wait(number: int) -> int:
        nonlocal waiting
        if number % 3:
            return number
        waiting += 1
        if waiting == 334:
            barrier.set()
        await barrier.wait()
        return number

    assert await recorded.run(wait.map(number=list(range(1000)))) == list(range(1000))
    waiting = 0
    barrier.clear()
    assert await recorded.run(cs.task(list, name="all")([wait(number) for number in range(1000)])) == list(range(1000))


async def test_a_cancellation_that_a_coroutine_has_withdrawn_does_not_reach_the_next_one(
    recorded: RecordedEngine,
) -> None:
    @cs.task
    async def withdraw() -> None:
        running: Any = asyncio.current_task()
        running.cancel()
        running.uncancel()

    await recorded.run(slow(withdraw()))


async def test_coroutines_run_with_an_eager_task_factory(recorded: RecordedEngine) -> None:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(eager_factory)
    try:
        calls: list[Any] = [slow() if number % 3 else quick() for number in range(2_000)]
        found = await recorded.run(cs.task(lambda *found: found, name="all", threaded=False)(*calls))
    finally:
        loop.set_task_factory(None)
    assert [value for _, value in found] == [0] * len(calls)


def eager_factory(loop: asyncio.AbstractEventLoop, work: Any, context: Context | None = None, **_: Any) -> Any:
    """Run the first step at once, as `asyncio.eager_task_factory` of Python 3.12 does."""
    context = context or copy_context()
    try:
        awaited = context.run(work.send, None)
    except StopIteration as end:
        future = loop.create_future()
        future.set_result(end.value)
        return future

    async def rest(work: Coroutine[Any, Any, Any], awaited: Any) -> Any:
        return await rest_in_context(context, work, awaited)

    return asyncio.Task(rest(work, awaited), loop=loop, context=context.copy())
