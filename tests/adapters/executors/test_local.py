import asyncio
import contextvars
import functools
import gc
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

import cascade as cs
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.executors.worker_pool import Call, WorkerPool, worker_pool
from cascade.graph.model import Node
from cascade.runtime.exceptions import StillRunning
from tests.lab.waiting import HANG, NEVER, until

caller = contextvars.ContextVar("caller", default="none")


@pytest.fixture
def executor() -> Iterator[LocalExecutor]:
    executor = LocalExecutor()
    yield executor
    executor.close()


def node(function: Any, **fields: Any) -> Node:
    return Node("id", "the node", callable_obj=function, **fields)


async def double(x: int) -> int:
    return 2 * x


class AsyncCallable:
    async def __call__(self, x: int) -> int:
        return 2 * x


class TaskError(Exception):
    pass


@pytest.mark.parametrize(
    "function",
    [
        double,
        functools.partial(double),
        AsyncCallable(),
        functools.partial(AsyncCallable()),
        lambda x: double(x),  # noqa: PLW0108 - a plain function that gives a coroutine
        lambda x: 2 * x,
    ],
    ids=["coroutine function", "partial", "object", "partial of object", "gives coroutine", "plain"],
)
async def test_any_callable_is_called_and_its_awaitable_awaited(executor: LocalExecutor, function: Any) -> None:
    assert await executor.execute(node(function), [21], {}) == 42
    assert await executor.execute(node(function), [], {"x": 21}) == 42


@pytest.mark.parametrize("function", [None, 3, "text"])
async def test_a_node_without_a_callable_is_a_type_error_with_its_name(executor: LocalExecutor, function: Any) -> None:
    with pytest.raises(TypeError, match="the node"):
        await executor.execute(node(function), [], {})


async def test_plain_functions_run_in_named_worker_threads(executor: LocalExecutor) -> None:
    name = await executor.execute(node(lambda: threading.current_thread().name), [], {})
    assert name.startswith("cascade-")


async def test_coroutine_functions_stay_in_the_loop(executor: LocalExecutor) -> None:
    async def where() -> threading.Thread:
        return threading.current_thread()

    for function in (where, functools.partial(where)):
        assert await executor.execute(node(function), [], {}) is threading.current_thread()


@pytest.mark.parametrize(
    ("options", "threaded", "in_loop"),
    [
        ({}, None, False),
        ({}, False, True),
        ({"threads": False}, None, True),
        ({"threads": False}, True, False),
    ],
)
async def test_cheap_functions_may_stay_in_the_loop(
    options: dict[str, bool], threaded: bool | None, in_loop: bool
) -> None:
    executor = LocalExecutor(**options)
    thread = await executor.execute(node(threading.current_thread, threaded=threaded), [], {})
    executor.close()
    assert (thread is threading.current_thread()) is in_loop


async def test_nodes_may_be_other_objects(executor: LocalExecutor) -> None:
    assert await executor.execute(SimpleNamespace(callable_obj=max), [1, 2], {}) == 2


async def test_threads_have_a_copy_of_the_callers_context(executor: LocalExecutor) -> None:
    def read_and_set() -> str:
        before = caller.get()
        caller.set("the thread")
        return before

    caller.set("the test")
    assert await executor.execute(node(read_and_set), [], {}) == "the test"
    assert caller.get() == "the test"


@pytest.mark.parametrize("threads", [True, False])
async def test_exceptions_are_raised_unchanged(threads: bool) -> None:
    error = TaskError("broken")

    def fail() -> None:
        raise error

    executor = LocalExecutor(threads=threads)
    with pytest.raises(TaskError) as caught:
        await executor.execute(node(fail), [], {})
    executor.close()
    assert caught.value is error


@pytest.mark.parametrize("threads", [True, False])
async def test_stop_iteration_is_a_runtime_error_and_no_hang(threads: bool) -> None:
    executor = LocalExecutor(threads=threads)
    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        await executor.execute(node(lambda: next(iter(()))), [], {})
    executor.close()
    assert isinstance(caught.value.__cause__, StopIteration)


async def test_blocking_functions_run_concurrently() -> None:
    executor, together = LocalExecutor(max_workers=40), threading.Barrier(40, timeout=HANG)
    await asyncio.gather(*(executor.execute(node(together.wait), [], {}) for _ in range(40)))
    executor.close()


async def test_max_workers_limits_the_concurrent_functions() -> None:
    executor, running, most = LocalExecutor(max_workers=2), 0, 0
    lock = threading.Lock()

    def count() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1

    await asyncio.gather(*(executor.execute(node(count), [], {}) for _ in range(50)))
    executor.close()
    assert most <= 2


@pytest.mark.parametrize("max_workers", [0, -1])
def test_at_least_one_worker_is_needed(max_workers: int) -> None:
    with pytest.raises(ValueError, match="max_workers"):
        LocalExecutor(max_workers=max_workers)


class BlockingFunction:
    """A function with an event for its start, that blocks until `may_end` is set."""

    def __init__(self) -> None:
        self._loop, self.entered = asyncio.get_running_loop(), asyncio.Event()
        self.may_end = threading.Event()

    def __call__(self) -> str:
        self._loop.call_soon_threadsafe(self.entered.set)
        assert self.may_end.wait(HANG)
        return "ended"


async def test_a_cancelled_call_raises_still_running_without_waiting_for_the_thread(executor: LocalExecutor) -> None:
    blocking = BlockingFunction()
    running = asyncio.create_task(executor.execute(node(blocking), [], {}))
    await blocking.entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await running
    assert isinstance(caught.value, StillRunning)
    ended = threading.Event()
    caught.value.work.add_done_callback(lambda _: ended.set())
    assert not ended.is_set()
    blocking.may_end.set()
    assert await asyncio.to_thread(ended.wait, HANG)
    late = threading.Event()
    caught.value.work.add_done_callback(lambda _: late.set())
    assert late.is_set(), "an ended call calls its callback at once"


async def test_one_executor_serves_two_event_loops_at_once(executor: LocalExecutor) -> None:
    def in_own_loop(number: int) -> list[int]:
        async def main() -> list[int]:
            return list(await asyncio.gather(*[executor.execute(node(lambda n=n: n), [], {}) for n in range(number)]))

        return asyncio.run(main())

    both = await asyncio.gather(asyncio.to_thread(in_own_loop, 200), asyncio.to_thread(in_own_loop, 300))
    assert list(both) == [list(range(200)), list(range(300))]


async def test_a_call_that_is_cancelled_before_its_thread_never_runs() -> None:
    executor, blocking, called = LocalExecutor(max_workers=1), BlockingFunction(), []
    first = asyncio.create_task(executor.execute(node(blocking), [], {}))
    await blocking.entered.wait()
    second = asyncio.create_task(executor.execute(node(lambda: called.append(1)), [], {}))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError) as caught:
        await second
    blocking.may_end.set()
    assert await first == "ended"
    assert await executor.execute(node(lambda: "next"), [], {}) == "next"
    executor.close()
    assert not isinstance(caught.value, StillRunning)
    assert called == []


def test_one_executor_serves_several_loops_one_after_another_and_at_once(executor: LocalExecutor) -> None:
    together = threading.Barrier(2, timeout=HANG)

    def in_own_loop(_: int) -> int:
        return asyncio.run(executor.execute(node(together.wait), [], {})) in {0, 1}

    asyncio.run(executor.execute(node(int), [], {}))
    threads = [threading.Thread(target=in_own_loop, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANG)
    assert not together.broken


async def test_it_can_be_used_after_close(executor: LocalExecutor) -> None:
    for _ in range(2):
        assert await executor.execute(node(lambda: 1), [], {}) == 1
        executor.close()


async def test_idle_threads_end_on_close(executor: LocalExecutor) -> None:
    thread = await executor.execute(node(threading.current_thread), [], {})
    executor.close()
    await asyncio.to_thread(thread.join, HANG)
    assert not thread.is_alive()


async def test_the_garbage_collector_may_free_an_executor_while_a_call_starts(
    executor: LocalExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit, slots = ThreadPoolExecutor.submit, worker_pool().slots

    async def create_garbage() -> None:
        unreferenced = LocalExecutor(max_workers=97)
        await unreferenced.execute(node(int), [], {})
        cycle = list[Any]([unreferenced])
        cycle.append(cycle)

    def collect_first(pool: ThreadPoolExecutor, *args: Any) -> Future[Any]:
        sizes.append(slots.size)
        gc.collect()
        return submit(pool, *args)

    sizes = list[int]()
    monkeypatch.setattr(ThreadPoolExecutor, "submit", collect_first)
    gc.disable()
    try:
        await create_garbage()
        together = threading.Barrier(4, timeout=HANG)
        await asyncio.gather(*(executor.execute(node(together.wait), [], {}) for _ in range(4)))
    finally:
        gc.enable()
    assert 97 in sizes, "the executor was freed before the call"
    assert await executor.execute(node(lambda: "next"), [], {}) == "next"
    assert slots.size < 97


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_exit_of_the_program_is_raised_from_a_thread(kind: type[BaseException]) -> None:
    def stop() -> None:
        raise kind

    executor = LocalExecutor()
    with pytest.raises(kind):
        asyncio.run(executor.execute(node(stop), [], {}))
    executor.close()


def test_an_open_executor_does_not_delay_the_exit() -> None:
    code = """
import asyncio
from cascade.adapters.executors.worker_pool import Call, WorkerPool, worker_pool
from cascade.adapters.executors.local import LocalExecutor
from cascade.graph.model import Node
executor = LocalExecutor()
print(asyncio.run(executor.execute(Node("i", "n", callable_obj=lambda: "done"), [], {})))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=HANG)
    assert done.stdout == "done\n"


def test_the_option_threaded_selects_thread_or_event_loop() -> None:
    @cs.task(threaded=False)
    def in_loop() -> str:
        return threading.current_thread().name

    @cs.task
    def in_thread() -> str:
        return threading.current_thread().name

    pair: Callable[..., list[str]] = lambda *names: list(names)  # noqa: E731
    names = cs.run(cs.task(pair, name="pair")(in_loop(), in_thread()))
    assert names[0] == threading.current_thread().name
    assert names[1].startswith("cascade-")


async def test_a_thread_whose_function_ends_after_the_last_run_does_not_wait_for_a_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its wait would delay the exit of the interpreter, which joins the threads."""
    monkeypatch.setattr("cascade.adapters.executors.worker_pool.IDLE_TIMEOUT", NEVER)
    pool = WorkerPool()
    monkeypatch.setattr("cascade.adapters.executors.worker_pool._pool", pool)
    share, release, threads = pool.slots.open(1), threading.Event(), list[threading.Thread]()

    def late() -> None:
        threads.append(threading.current_thread())
        release.wait(HANG)

    pool.start(Call(late))
    await until(lambda: len(threads) == 1)
    pool.close(share)
    release.set()
    await until(lambda: not threads[0].is_alive())
