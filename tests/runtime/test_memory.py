"""A run frees its values, arguments and exceptions without the garbage collector."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.runtime._plan import SLICE
from cascade.runtime.engine import run_nested
from cascade.spec.protocols import Connector
from tests.lab.waiting import HANG


class Value:
    """A value whose deallocation is counted."""


class LiveValues:
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


def plain(live: LiveValues) -> Any:
    return cs.task(lambda _: live.value(), name="make")(live.value())


def in_the_loop(live: LiveValues) -> Any:
    return cs.task(threaded=False)(lambda _: live.value())(live.value())


def coroutine(live: LiveValues) -> Any:
    @cs.task
    async def make(_: Any) -> Value:
        return live.value()

    return make(live.value())


def chain(live: LiveValues) -> Any:
    step = cs.task(lambda _: live.value(), name="step")
    return step(step(step(None)))


def fan_in(live: LiveValues) -> Any:
    make = cs.task(lambda _: live.value(), name="make")
    join: Any = cs.task(lambda *xs, **named: (xs, named), name="join")
    return join(make(1), [make(2)], last={"x": make(3)})


def mapped(live: LiveValues) -> Any:
    return cs.task(lambda x: live.value(), name="make").map(x=[live.value(), live.value()])


def retried(live: LiveValues) -> Any:
    calls: list[int] = []

    @cs.task
    def make(_: Any) -> Value:
        made = live.value()
        calls.append(1)
        if len(calls) < 3:
            raise ValueError(made)
        return made

    return make(live.value()).with_retry(3)


def plain_failure(live: LiveValues) -> Any:
    def fail(_: Any) -> None:
        raise ValueError(live.value())

    return cs.task(fail)(live.value())


def failure_in_the_loop(live: LiveValues) -> Any:
    def fail(_: Any) -> None:
        raise ValueError(live.value())

    return cs.task(threaded=False)(fail)(live.value())


def coroutine_failure(live: LiveValues) -> Any:
    async def fail(_: Any) -> None:
        raise ValueError(live.value())

    return cs.task(fail)(live.value())


def late_failure(live: LiveValues) -> Any:
    def fail(_: Any) -> None:
        raise ValueError(live.value())

    return cs.task(fail)(chain(live))


def mapped_failure(live: LiveValues) -> Any:
    async def fail(x: Any) -> None:
        raise ValueError(live.value())

    return cs.task(fail).map(x=[live.value(), live.value()])


def retried_failure(live: LiveValues) -> Any:
    def fail(_: Any) -> None:
        raise ValueError(live.value())

    return cs.task(fail)(live.value()).with_retry(2)


def exit_of_a_task(live: LiveValues) -> Any:
    def leave() -> None:
        raise SystemExit(live.value())

    return cs.task(leave)()


def cancellation_of_a_task(live: LiveValues) -> Any:
    async def cancel(_: Any) -> None:
        raise asyncio.CancelledError(live.value())

    return cs.task(cancel)(live.value())


def skipped(live: LiveValues) -> Any:
    no = cs.task(lambda: False, name="no")()
    return cs.task(lambda _: 1, name="skip")(chain(live)).run_if(no)


def routed(live: LiveValues) -> Any:
    routes = {"a": chain(live), "b": chain(live)}
    choose = cs.task(lambda: "a", name="choose")()
    return cs.task(lambda x: x, name="take")(cs.Router(choose, routes))


def resources(live: LiveValues) -> Any:
    @cs.resource
    def plain_one() -> Iterator[Value]:
        yield live.value()

    @cs.resource
    async def coroutine_one() -> AsyncIterator[Value]:
        yield live.value()

    return cs.task(lambda a=cs.inject(plain_one), b=cs.inject(coroutine_one): (a, b), name="use")()


def failed_setup(live: LiveValues) -> Any:
    @cs.resource
    def broken() -> Iterator[Value]:
        raise ValueError(live.value())
        yield live.value()

    return cs.task(lambda a=cs.inject(broken): a, name="use")()


def failed_teardowns(live: LiveValues) -> Any:
    @cs.resource
    def plain_one() -> Iterator[Value]:
        yield live.value()
        raise ValueError(live.value())

    @cs.resource
    async def coroutine_one() -> AsyncIterator[Value]:
        yield live.value()
        raise KeyError(live.value())

    return cs.task(lambda a=cs.inject(plain_one), b=cs.inject(coroutine_one): (a, b), name="use")()


def nested(live: LiveValues) -> Any:
    async def run(_: Any) -> Any:
        return await run_nested(chain(live))

    return cs.task(run)(live.value())


def several_targets(live: LiveValues) -> Any:
    make = cs.task(lambda _: live.value(), name="make")
    first = make(live.value())
    return [first, {"x": make(first), "y": live.value()}, first]


def several_targets_of_which_one_fails(live: LiveValues) -> Any:
    return (chain(live), plain_failure(live))


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
    several_targets,
    several_targets_of_which_one_fails,
)


def run_target(target: Any, **options: Any) -> None:
    cs.run(target, **options)


def unwrap_twice(target: Any, **options: Any) -> None:
    result = cs.execute(target, **options)
    try:
        with suppress(Exception, SystemExit, asyncio.CancelledError):
            result.unwrap()
        result.unwrap()
    finally:
        del result  # the traceback refers to this frame


def check_that_all_is_freed(
    shape: Callable[[LiveValues], Any], connector: Connector | None, run: Callable[..., None] = run_target
) -> None:
    live = LiveValues()
    with no_garbage_collection():
        for _ in range(2):
            with suppress(Exception, SystemExit, asyncio.CancelledError):
                run(shape(live), log_level="OFF", connector=connector)
        assert live.count >= 2
        assert live.alive == 0


@pytest.mark.parametrize("connector", [None, MemoryConnector], ids=["no connector", "connector"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_a_finished_run_frees_its_values(shape: Callable[[LiveValues], Any], connector: Any) -> None:
    check_that_all_is_freed(shape, connector() if connector else None)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.__name__)
def test_a_result_that_is_dropped_frees_its_values(shape: Callable[[LiveValues], Any]) -> None:
    check_that_all_is_freed(shape, None, unwrap_twice)


async def test_the_nodes_of_a_large_run_are_freed_in_several_turns_of_the_event_loop() -> None:
    live, alive = LiveValues(), list[int]()
    use = cs.task(lambda _: None, name="use", threaded=False)
    count = cs.task(len, name="count", threaded=False)
    with no_garbage_collection():
        await cs.run_async(count([use(live.value()) for _ in range(4 * SLICE)]), log_level="OFF")
        while alive[-1:] != [0]:
            alive.append(live.alive)
            await asyncio.sleep(0)
    assert alive[0] >= 3 * SLICE
    assert all(before - after <= SLICE for before, after in pairwise(alive))


async def test_a_cancelled_run_frees_its_values() -> None:
    live, started = LiveValues(), asyncio.Event()

    @cs.task
    async def wait(_: Any) -> None:
        _held = live.value()
        started.set()
        await asyncio.Event().wait()

    with no_garbage_collection():
        run = asyncio.create_task(cs.run_async(wait(chain(live)), log_level="OFF"))
        await started.wait()
        assert live.alive == 2  # the argument and the value in the frame
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        del run
        assert live.alive == 0


async def test_a_function_that_outlives_its_cancelled_run_frees_its_values_at_its_end() -> None:
    live, started, may_finish, gone = LiveValues(), threading.Event(), threading.Event(), threading.Event()

    @cs.task
    def wait(value: Any) -> Value:
        weakref.finalize(value, gone.set)
        started.set()
        may_finish.wait(HANG)
        return live.value()

    with no_garbage_collection():
        run = asyncio.create_task(cs.run_async(wait(live.value()), log_level="OFF"))
        await asyncio.to_thread(started.wait, HANG)
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
        del run
        assert live.alive == 1
        may_finish.set()
        assert await asyncio.to_thread(gone.wait, HANG)


def test_a_function_that_fails_after_the_end_of_the_event_loop_frees_its_values() -> None:
    started, may_finish, gone = threading.Event(), threading.Event(), threading.Event()

    @cs.task
    def fail(value: Value) -> None:
        weakref.finalize(value, gone.set)
        started.set()
        may_finish.wait(HANG)
        raise ValueError("late")

    async def cancelled() -> None:
        run = asyncio.create_task(cs.run_async(fail(Value()), log_level="OFF"))
        await asyncio.to_thread(started.wait, HANG)
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run

    with no_garbage_collection():
        asyncio.run(cancelled())
        may_finish.set()
        assert gone.wait(HANG)


def test_a_stored_exception_keeps_no_results_alive() -> None:
    live = LiveValues()

    @cs.task
    def fail(_: Any) -> None:
        raise ValueError("no")

    with no_garbage_collection():
        with pytest.raises(ValueError, match="no") as raised:
            cs.run(fail(cs.task(lambda _: 1, name="last")(chain(live))), log_level="OFF")
        assert live.count == 3
        assert live.alive == 0
        del raised


async def test_a_background_task_of_a_task_keeps_no_values_alive() -> None:
    """The context of the background task was copied inside the task."""
    live, background, stop = LiveValues(), set[asyncio.Task[bool]](), asyncio.Event()

    @cs.task
    async def start(_: Any) -> Value:
        background.add(asyncio.create_task(stop.wait()))
        return live.value()

    with no_garbage_collection():
        await cs.run_async(start(chain(live)), log_level="OFF")
        assert len(background) == 1
        assert (live.count, live.alive) == (4, 0)
    stop.set()
    await asyncio.wait(background)
