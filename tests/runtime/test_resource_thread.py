"""Threads and contexts of setups and teardowns."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

import cascade as cs
from tests.lab.waiting import HANG
from tests.runtime.conftest import RecordedEngine

where: ContextVar[str] = ContextVar("where", default="nowhere")


@cs.task
def use(first: Any, second: Any = None) -> Any:
    return first


async def test_a_plain_resource_is_set_up_and_torn_down_in_one_thread_beside_the_event_loop(
    recorded: RecordedEngine,
) -> None:
    threads: list[threading.Thread] = []

    @cs.resource
    def first() -> Iterator[int]:
        threads.append(threading.current_thread())
        yield 1
        threads.append(threading.current_thread())

    @cs.resource
    def second(first: int = cs.inject(first)) -> Iterator[int]:
        threads.append(threading.current_thread())
        yield 2
        threads.append(threading.current_thread())

    assert await recorded.run(use(cs.inject(first), cs.inject(second))) == 1
    assert len(threads) == 4
    assert set(threads) == {threads[0]}
    assert threads[0] is not threading.current_thread()


async def test_a_setup_and_a_teardown_do_not_block_the_event_loop(recorded: RecordedEngine) -> None:
    loop, steps = asyncio.get_running_loop(), []

    @cs.resource
    def waits_for_the_loop() -> Iterator[int]:
        for step in ("setup", "teardown"):
            reached = threading.Event()
            loop.call_soon_threadsafe(reached.set)
            assert reached.wait(HANG)
            steps.append(step)
            if step == "setup":
                yield 1

    assert await recorded.run(use(cs.inject(waits_for_the_loop))) == 1
    assert steps == ["setup", "teardown"]


async def test_a_connection_of_sqlite3_is_used_and_closed_by_resources(recorded: RecordedEngine) -> None:
    closed = []

    @cs.resource
    def connection() -> Iterator[sqlite3.Connection]:
        made = sqlite3.connect(":memory:")
        yield made
        made.close()
        closed.append(made)

    @cs.resource
    def table(connection: sqlite3.Connection = cs.inject(connection)) -> Iterator[str]:
        connection.execute("create table t (x)")
        yield "t"
        connection.execute("drop table t")

    assert await recorded.run(use(cs.inject(table))) == "t"
    assert len(closed) == 1


async def test_tasks_in_all_threads_do_not_delay_a_setup(recorded: RecordedEngine) -> None:
    """A nested run sets up a resource while the task that waits for it, and others, occupy the executor."""
    recorded.executor = cs.LocalExecutor(max_workers=1)
    recorded.engine.executor = recorded.executor

    @cs.resource
    def inner() -> Iterator[int]:
        yield 1

    loop = asyncio.get_running_loop()

    @cs.task
    def nested(x: int) -> Any:
        return asyncio.run_coroutine_threadsafe(recorded.run(set_up(cs.inject(inner))), loop).result(HANG)

    @cs.task
    async def set_up(inner: int) -> int:
        return inner

    assert await recorded.run(nested(1)) == 1


@pytest.mark.parametrize("plain", [True, False])
async def test_a_teardown_finds_the_context_variables_of_its_setup(plain: bool, recorded: RecordedEngine) -> None:
    found = []

    @cs.resource(name="sets")
    def plain_generator() -> Iterator[int]:
        token = where.set("setup")
        yield 1
        found.append(where.get())
        where.reset(token)

    @cs.resource(name="sets")
    async def async_generator() -> AsyncIterator[int]:
        token = where.set("setup")
        yield 1
        found.append(where.get())
        where.reset(token)

    where.set("caller")
    look = cs.task(lambda _: where.get(), name="look")
    assert await recorded.run(look(cs.inject(plain_generator if plain else async_generator))) == "caller"
    assert found == ["setup"]
    assert where.get() == "caller"


async def test_an_async_resource_stays_in_one_task(recorded: RecordedEngine) -> None:
    tasks = []

    @cs.resource
    async def scope() -> AsyncIterator[int]:
        async with asyncio.timeout(HANG):  # raises if another asyncio task exits it
            tasks.append(asyncio.current_task())
            yield 1
            tasks.append(asyncio.current_task())

    assert await recorded.run(use(cs.inject(scope))) == 1
    assert tasks == [asyncio.current_task()] * 2


@pytest.mark.parametrize("scope", ["session", "task", "", None])
def test_run_is_the_only_scope(scope: Any) -> None:
    with pytest.raises(ValueError, match="scope must be 'run', got"):
        cs.resource(scope=scope)
    assert cs.resource(scope="run")(lambda_generator).scope == "run"


def lambda_generator() -> Iterator[int]:
    yield 1
