"""A run frees its values, arguments and exceptions without the garbage collector."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.runtime.engine import run_nested
from cascade.spec.protocols import Connector
from tests.lab.waiting import HANG


class Value:
    """A value whose deallocation is counted."""


class Born:
    """Creates values and counts the live ones."""

    def __init__(self) -> None:
        self._references: list[weakref.ref[Value]] = []

    def value(self) -> Value:
        made = Value()
        self._references.append(weakref.ref(made))
        return made

    @property
    def count(self) -> int:
        return len(self._references)

    @property
    def alive(self) -> int:
        return sum(reference() is not None for reference in self._references)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def plain(born: Born) -> Any:
    return cs.task(lambda _: born.value(), name="make")(born.value())


def in_the_loop(born: Born) -> Any:
    return cs.task(threaded=False)(lambda _: born.value())(born.value())


def coroutine(born: Born) -> Any:
    @cs.task
    async def make(_: Any) -> Value:
        return born.value()

    return make(born.value())


def chain(born: Born) -> Any:
    step = cs.task(lambda _: born.value(), name="step")
    return step(step(step(None)))


def fan_in(born: Born) -> Any:
    make = cs.task(lambda _: born.value(), name="make")
    join: Any = cs.task(lambda *xs, **named: (xs, named), name="join")
    return join(make(1), [make(2)], last={"x": make(3)})


def mapped(born: Born) -> Any:
    return cs.task(lambda x: born.value(), name="make").map(x=[born.value(), born.value()])


def retried(born: Born) -> Any:
    calls: list[int] = []

    @cs.task
    def make(_: Any) -> Value:
        made = born.value()
        calls.append(1)
        if len(calls) < 3:
            raise ValueError(made)
        return made

    return make(born.value()).with_retry(3)


def plain_failure(born: Born) -> Any:
    def fail(_: Any) -> None:
        raise ValueError(born.value())

    return cs.task(fail)(born.value())


def failure_in_the_loop(born: Born) -> Any:
    def fail(_: Any) -> None:
        raise ValueError(born.value())

    return cs.task(threaded=False)(fail)(born.value())


def coroutine_failure(born: Born) -> Any:
    async def fail(_: Any) -> None:
        raise ValueError(born.value())

    return cs.task(fail)(born.value())


def late_failure(born: Born) -> Any:
    def fail(_: Any) -> None:
        raise ValueError(born.value())

    return cs.task(fail)(chain(born))


def mapped_failure(born: Born) -> Any:
    async def fail(x: Any) -> None:
        raise ValueError(born.value())

    return cs.task(fail).map(x=[born.value(), born.value()])


def retried_failure(born: Born) -> Any:
    def fail(_: Any) -> None:
        raise ValueError(born.value())

    return cs.task(fail)(born.value()).with_retry(2)


def exit_of_a_task(born: Born) -> Any:
    def leave() -> None:
        raise SystemExit(born.value())

    return cs.task(leave)()


def cancellation_of_a_task(born: Born) -> Any:
    async def cancel(_: Any) -> None:
        raise asyncio.CancelledError(born.value())

    return cs.task(cancel)(born.value())


def skipped(born: Born) -> Any:
    no = cs.task(lambda: False, name="no")()
    return cs.task(lambda _: 1, name="skip")(chain(born)).run_if(no)


def routed(born: Born) -> Any:
    routes = {"a": chain(born), "b": chain(born)}
    choose = cs.task(lambda: "a", name="choose")()
    return cs.task(lambda x: x, name="take")(cs.Router(choose, routes))


def resources(born: Born) -> Any:
    @cs.resource
    def plain_one() -> Iterator[Value]:
        yield born.value()

    @cs.resource
    async def coroutine_one() -> AsyncIterator[Value]:
        yield born.value()

    return cs.task(lambda a=cs.inject(plain_one), b=cs.inject(coroutine_one): (a, b), name="use")()


def failed_setup(born: Born) -> Any:
    @cs.resource
    def broken() -> Iterator[Value]:
        raise ValueError(born.value())
        yield born.value()

    return cs.task(lambda a=cs.inject(broken): a, name="use")()


def failed_teardowns(born: Born) -> Any:
    @cs.resource
    def plain_one() -> Iterator[Value]:
        yield born.value()
        raise ValueError(born.value())

    @cs.resource
    async def coroutine_one() -> AsyncIterator[Value]:
        yield born.value()
        raise KeyError(born.value())

    return cs.task(lambda a=cs.inject(plain_one), b=cs.inject(coroutine_one): (a, b), name="use")()


def nested(born: Born) -> Any:
    async def run(_: Any) -> Any:
        return await run_nested(chain(born))

    return cs.task(run)(born.value())


SHAPES = (
    plain,
    in_the_loop,
    coroutine,
    chain,
    fan_in,
    mapped,
    retried,
    plain_failure,
    failure_in_the_loop,
    coroutine_failure,
    late_failure,
    mapped_failure,
    retried_failure,
    exit_of_a_task,
    cancellation_of_a_task,
    skipped,
    routed,
    resources,
    failed_setup,
    failed_teardowns,
    nested,
)


def check_that_all_is_freed(shape: Callable[[Born], Any], connector: Connector | None) -> None:
    born = Born()
    with no_garbage_collection():
        for _ in range(2):
            with suppress(Exception, SystemExit, asyncio.CancelledError):
                cs.run(shape(born), log_level="OFF", connector=connector)
        assert born.count >= 2
        assert born.alive == 0


@pytest.mark.parametrize("connector", [None, MemoryConnector], ids=["no connector", "connector"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_a_finished_run_frees_its_values(shape: Callable[[Born], Any], connector: Any) -> None:
    check_that_all_is_freed(shape, connector() if connector else None)


async def test_a_cancelled_run_frees_its_values() -> None:
    born, started = Born(), asyncio.Event()

    @cs.task
    async def wait(_: Any) -> None:
        _held = born.value()
        started.set()
        await asyncio.Event().wait()

    with no_garbage_collection():
        run = asyncio.create_task(cs.run_async(wait(chain(born)), log_level="OFF"))
        await started.wait()
        assert born.alive == 2  # the argument and the value in the frame
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        del run
        assert born.alive == 0


async def test_a_function_that_outlives_its_cancelled_run_frees_its_values_at_its_end() -> None:
    born, started, goes_on, gone = Born(), threading.Event(), threading.Event(), threading.Event()

    @cs.task
    def wait(value: Any) -> Value:
        weakref.finalize(value, gone.set)
        started.set()
        goes_on.wait(HANG)
        return born.value()

    with no_garbage_collection():
        run = asyncio.create_task(cs.run_async(wait(born.value()), log_level="OFF"))
        await asyncio.to_thread(started.wait, HANG)
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        del run
        assert born.alive == 1
        goes_on.set()
        assert await asyncio.to_thread(gone.wait, HANG)


def test_a_function_that_fails_after_the_end_of_the_event_loop_frees_its_values() -> None:
    started, goes_on, gone = threading.Event(), threading.Event(), threading.Event()

    @cs.task
    def fail(value: Value) -> None:
        weakref.finalize(value, gone.set)
        started.set()
        goes_on.wait(HANG)
        raise ValueError("late")

    async def cancelled() -> None:
        run = asyncio.create_task(cs.run_async(fail(Value()), log_level="OFF"))
        await asyncio.to_thread(started.wait, HANG)
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run

    with no_garbage_collection():
        asyncio.run(cancelled())
        goes_on.set()
        assert gone.wait(HANG)


def test_a_stored_exception_keeps_no_results_alive() -> None:
    born = Born()

    @cs.task
    def fail(_: Any) -> None:
        raise ValueError("no")

    with no_garbage_collection():
        with pytest.raises(ValueError, match="no") as raised:
            cs.run(fail(cs.task(lambda _: 1, name="last")(chain(born))), log_level="OFF")
        assert born.count == 3
        assert born.alive == 0
        del raised


async def test_a_background_task_of_a_task_keeps_no_values_alive() -> None:
    """The context of the background task was copied inside the task."""
    born, background, stop = Born(), set[asyncio.Task[bool]](), asyncio.Event()

    @cs.task
    async def start(_: Any) -> Value:
        background.add(asyncio.create_task(stop.wait()))
        return born.value()

    with no_garbage_collection():
        await cs.run_async(start(chain(born)), log_level="OFF")
        assert len(background) == 1
        assert (born.count, born.alive) == (4, 0)
    stop.set()
    await asyncio.wait(background)
