"""One pool of worker threads for the process: its slots, their order, nested runs."""

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

import cascade as cs
from cascade.adapters.executors import slots
from cascade.adapters.executors.local import LocalExecutor
from cascade.adapters.executors.slots import DEFAULT_SLOTS
from cascade.adapters.solvers.native import NativeSolver
from cascade.runtime.bus import MessageBus
from cascade.runtime.engine import Engine
from tests.lab.waiting import HANG

cpu_count: Callable[[], int | None] = getattr(os, "process_cpu_count", os.cpu_count)


class Counter:
    """Counts concurrent calls. With `wait_for`, each call blocks until so many have begun."""

    def __init__(self, wait_for: int = 0) -> None:
        self._changed, self._wait_for = threading.Condition(), wait_for
        self.running = self.most = self.begun = 0

    def __call__(self, i: int = 0) -> int:
        with self._changed:
            self.running += 1
            self.begun += 1
            self.most = max(self.most, self.running)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self.begun >= self._wait_for, HANG)
        with self._changed:
            self.running -= 1
        return i


def run_with(target: Any, max_workers: int | None) -> Any:
    return cs.run(target, max_workers=max_workers, log_level="ERROR")


def test_the_default_is_that_of_concurrent_futures() -> None:
    assert min(32, (cpu_count() or 1) + 4) == DEFAULT_SLOTS
    counter = Counter(DEFAULT_SLOTS)
    assert run_with(cs.task(counter, name="work").map(i=list(range(100))), None) == list(range(100))
    assert counter.most == DEFAULT_SLOTS


@pytest.mark.parametrize("max_workers", [1, 3, 50])
def test_max_workers_is_the_number_of_slots_of_one_run(max_workers: int) -> None:
    counter = Counter(max_workers)
    work = cs.task(counter, name="work")
    assert run_with(work.map(i=list(range(60))), max_workers) == list(range(60))
    assert counter.most == max_workers
    counter = Counter(max_workers)
    run_with(cs.task(lambda xs: xs, name="all")([cs.task(counter, name="work")(i) for i in range(60)]), max_workers)
    assert counter.most == max_workers


async def test_run_async_has_max_workers_too() -> None:
    counter = Counter(2)
    task = cs.task(counter, name="work").map(i=list(range(9)))
    assert await cs.run_async(task, max_workers=2, log_level="ERROR") == list(range(9))
    assert counter.most == 2


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "4", True, False, float("nan"), [4]])
def test_a_wrong_max_workers_is_refused_before_anything_runs(wrong: Any) -> None:
    called: list[int] = []
    target = cs.task(called.append, name="work")(1)
    with pytest.raises(ValueError, match=r"max_workers must be an integer from 1 up, got") as caught:
        cs.run(target, max_workers=wrong)
    assert repr(wrong) in str(caught.value)
    with pytest.raises(ValueError, match="max_workers"):
        LocalExecutor(max_workers=wrong)
    assert called == []


async def test_forty_runs_share_the_threads() -> None:
    counter, names = Counter(), set()

    def work(i: int) -> int:
        names.add(threading.current_thread().name)
        return counter(i)

    task = cs.task(work)
    runs = [cs.run_async(task.map(i=list(range(32))), log_level="ERROR") for _ in range(40)]
    assert await asyncio.gather(*runs) == [list(range(32))] * 40
    assert counter.most <= DEFAULT_SLOTS
    assert all(name.startswith("cascade-task") for name in names)
    assert sum(thread.name.startswith("cascade-task") for thread in threading.enumerate()) <= DEFAULT_SLOTS + 1


async def test_waiting_runs_get_slots_in_turn() -> None:
    """A later run gets every second released slot."""
    order: list[str] = []
    pool = slots.SlotPool()
    pool.size = 1
    shares = [slots.Share(pool, 1) for _ in range(3)]
    first = await shares[0].slots.acquire()

    async def one(number: int) -> None:
        slot = await shares[number].slots.acquire()
        order.append("abc"[number])
        slot.release()

    waiting = [asyncio.create_task(one(number)) for number in (1, 1, 1, 2, 2)]
    await asyncio.sleep(0)
    assert order == []
    first.release()
    await asyncio.gather(*waiting)
    assert order == ["b", "c", "b", "c", "b"]


@cs.task
def depth(n: int) -> int:
    return n and 1 + run_with(depth(n - 1), 1)


@cs.task
def leaves(n: int) -> int:
    return sum(cs.run(leaves.map(n=[n - 1] * 3), log_level="ERROR")) if n else 1


@cs.task
def with_asyncio_run(n: int) -> int:
    return n and 1 + asyncio.run(cs.run_async(with_asyncio_run(n - 1), max_workers=1, log_level="ERROR"))


@pytest.mark.parametrize("task", [depth, with_asyncio_run])
def test_a_nested_run_borrows_the_slot_of_its_task(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "STALL_TIMEOUT", 1e6)  # only borrowed slots
    monkeypatch.setattr(slots, "DEFAULT_SLOTS", 1)
    assert run_with(task(5), 1) == 5
    assert run_with(task.map(n=[5] * 4 * DEFAULT_SLOTS), None) == [5] * 4 * DEFAULT_SLOTS


def test_maps_within_maps_end_when_all_slots_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "STALL_TIMEOUT", 1e6)
    assert run_with(leaves.map(n=[3] * 2 * DEFAULT_SLOTS), None) == [27] * 2 * DEFAULT_SLOTS


def test_two_nested_runs_of_one_task_share_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "STALL_TIMEOUT", 1e6)
    counter = Counter()
    inner = cs.task(counter, name="inner")

    @cs.task
    def outer(n: int) -> list[list[int]]:
        async def both() -> list[list[int]]:
            return await asyncio.gather(*(cs.run_async(inner.map(i=[n, n]), log_level="ERROR") for _ in range(2)))

        return asyncio.run(both())

    count = 2 * DEFAULT_SLOTS
    assert run_with(outer.map(n=list(range(count))), None) == [[[n, n]] * 2 for n in range(count)]
    assert counter.most <= DEFAULT_SLOTS


async def test_a_function_that_returns_a_coroutine_lends_its_slot_to_the_run_that_it_awaits() -> None:
    inner = cs.task(lambda i: i, name="inner")

    async def nested(i: int) -> Any:
        return await cs.run_async(inner(i), max_workers=1, log_level="ERROR")

    @cs.task
    def outer(i: int) -> Any:
        return nested(i)

    count = 2 * DEFAULT_SLOTS
    assert await cs.run_async(outer.map(i=list(range(count))), log_level="ERROR") == list(range(count))


def test_runs_that_are_started_in_the_tasks_own_threads_do_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread does not have the context of the task: the run cannot borrow its slot."""
    monkeypatch.setattr(slots, "STALL_TIMEOUT", 0.02)

    @cs.task
    def nested(n: int) -> int:
        got: list[int] = []
        if n:
            thread = threading.Thread(target=lambda: got.append(run_with(nested(n - 1), None)))
            thread.start()
            thread.join()
        return 1 + sum(got)

    assert run_with(nested.map(n=[2] * 2 * DEFAULT_SLOTS), None) == [3] * 2 * DEFAULT_SLOTS


def test_a_failed_nested_run_returns_the_borrowed_slot() -> None:
    @cs.task
    def fail() -> None:
        raise OSError

    @cs.task
    def outer(i: int) -> int:
        with suppress(OSError):
            cs.run(fail(), log_level="OFF")
        return i

    assert run_with(outer.map(i=list(range(50))), 1) == list(range(50))


async def test_the_pool_grows_to_the_largest_limit_and_shrinks_again() -> None:
    big, small = LocalExecutor(max_workers=DEFAULT_SLOTS + 7), LocalExecutor()
    node = cs.graph.build.build_graph(cs.task(lambda: 1, name="one")()).nodes[0]
    slots = big.slots(node), small.slots(node)
    assert [p.size for p in slots if p] == [DEFAULT_SLOTS + 7, DEFAULT_SLOTS]
    assert slots[0] is not None
    held = [slots[0].try_acquire() for _ in range(DEFAULT_SLOTS + 8)]
    assert held.count(None) == 1
    for slot in held[:-1]:
        assert slot is not None
        slot.release()
    pool = slots[0].share.pool
    big.close()
    assert pool.size == DEFAULT_SLOTS
    small.close()


async def test_a_cancelled_request_passes_its_slot_to_the_next_one() -> None:
    executor = LocalExecutor(max_workers=1)
    node = cs.graph.build.build_graph(cs.task(lambda: 1, name="one")()).nodes[0]
    slots = executor.slots(node)
    assert slots is not None
    held = await slots.acquire()
    waiting = [asyncio.create_task(slots.acquire()) for _ in range(3)]
    await asyncio.sleep(0)
    waiting[0].cancel()
    held.release()
    waiting[1].cancel()  # it has been granted the slot in this turn of the loop
    slot = await waiting[2]
    slot.release()
    assert all(task.cancelled() for task in waiting[:2])
    assert slots.share.used == 0
    executor.close()


def _script(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        capture_output=True,
        check=False,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_threads_of_its_own() -> None:
    code = """
import os
import cascade as cs

@cs.task
def work(i): return i

@cs.task
def fork_in_task():
    pid = os.fork()
    if pid == 0:
        ok = cs.run(work.map(i=list(range(50))), log_level="ERROR") == list(range(50))
        os._exit(0 if ok else 3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def child():
    pid = os.fork()
    if pid == 0:
        os._exit(0 if cs.run(work.map(i=list(range(50))), log_level="ERROR") == list(range(50)) else 3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

print(child(), cs.run(work.map(i=[1, 2]), log_level="ERROR"), child(), cs.run(fork_in_task(), log_level="ERROR"))
"""
    assert _script(code) == "0 [1, 2] 0 0\n"


async def test_an_engine_outside_of_cs_run_takes_its_slots_from_the_same_pool() -> None:
    counter = Counter()
    executors = [LocalExecutor() for _ in range(4)]
    engines = [Engine(NativeSolver(), executor, MessageBus()) for executor in executors]
    task = cs.task(counter, name="work")
    await asyncio.gather(*(engine.run(task.map(i=list(range(20)))) for engine in engines))
    for executor in executors:
        executor.close()
    assert counter.most <= DEFAULT_SLOTS
