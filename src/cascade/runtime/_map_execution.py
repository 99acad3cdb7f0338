"""Maps: one task for each index of some lists, a window of them at a time."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from itertools import takewhile
from typing import Any

from cascade.graph.model import Node, join_arguments, split_arguments
from cascade.runtime._run_context import RunContext, seconds
from cascade.runtime._task_execution import TaskExecution
from cascade.runtime._task_group import BURST, TaskGroup
from cascade.runtime.backpressure import CombinedBackpressure, StartThrottle
from cascade.runtime.control.limiters import Key
from cascade.runtime.control.permit import Permit
from cascade.runtime.events import (
    MapCounts,
    MapProgressed,
    TaskBlocked,
    TaskExecutionFinished,
    TaskExecutionStarted,
    Wait,
)
from cascade.runtime.exceptions import add_task_note, result_of, status_of
from cascade.runtime.resolvers import ArgumentResolver
from cascade.spec.items import require_items
from cascade.spec.lazy_types import LazyResult, label_of
from cascade.telemetry.identity import item_id

MAP_WINDOW = 4096
"""Items of one map in flight. Enough to keep any pool of workers busy, and some 10 MiB of coroutines at most."""

PROGRESS_NS = 1_000_000_000
"""Nanoseconds between two reports of a map's progress, at least."""


class MapExecution:
    """One map node: its own events, and the `TaskExecution` of its items. It holds nothing that an item may need."""

    def __init__(
        self,
        run: RunContext,
        resolver: ArgumentResolver,
        node: Node,
        consumed: Callable[[Node], tuple[str, ...]],
        on_resolved: Callable[[Node], None],
    ) -> None:
        self._run = run
        self._resolver = resolver
        self._node = node
        self._consumed = consumed
        self._on_resolved = on_resolved
        self._size: int | None = None
        self._done = self._failed = self._cached = 0
        self._start_ns = self._progress_ns = 0
        self._waits: tuple[Wait, ...] = ()

    async def perform(self) -> list[Any]:
        """Run all items and return their values in the order of the lists.

        Raises:
            ValueError: The lists are not equally long.
            BaseException: What the first item that failed has raised.
        """
        if not self._run.has_control:
            return await self._perform()
        permit = Permit(self._run.admission, Key(self._run.run_ids, self._node.name, is_map=True))
        if not permit.try_acquire():
            blocked = partial(self._run.emit, TaskBlocked, **self._who())
            self._waits = await permit.acquire(blocked, self._run.clock.now_ns)
        try:
            return await self._perform()
        finally:
            permit.release()

    async def _perform(self) -> list[Any]:
        self._start_ns = self._progress_ns = self._run.clock.now_ns()
        try:
            items = zip_items(self._node, self._resolver.resolve(self._node).inputs)
        except Exception as error:
            now_ns = self._run.clock.last_ns
            add_task_note(error, f"task {self._node.name!r}", attempt_start_ns=self._start_ns, now_ns=now_ns)
            self._started()
            self._finished("error", **self._run.error_fields(error))
            raise
        self._on_resolved(self._node)
        self._size = len(items)
        self._started()
        try:
            values = await self._all(items)
        except asyncio.CancelledError as error:
            self._finished(result_of(error), **self._run.error_fields(error))
            raise
        except BaseException as error:
            self._finished(result_of(error))  # the error is the item's
            raise
        self._finished("success")
        return values

    async def _all(self, items: "Items") -> list[Any]:
        values: list[Any] = [None] * len(items)
        if values:
            window = self._window(items)
            group = TaskGroup(self._run, self._run.new_context)
            self._limiter = limiter = _WindowLimiter(group, window, self._run.bus.backpressure)
            try:
                await limiter.run(lambda i: self._one(i, items, values), len(items))
            finally:
                del self._limiter  # it refers to this object
        return values

    async def _one(self, index: int, items: "Items", values: list[Any]) -> None:
        try:
            work = self._work(index, items.take(index), items.positional)
            values[index] = await work.perform()
        except asyncio.CancelledError:
            raise
        except BaseException:  # SystemExit is a failure too
            self._failed += 1
            raise
        self._done += 1
        self._cached += not work.start_ns  # a value from the cache: the task has not started
        if self._done < len(items) and self._run.clock.last_ns - self._progress_ns >= PROGRESS_NS:
            self._report_progress()

    def _report_progress(self) -> None:
        now_ns = self._progress_ns = self._run.clock.last_ns
        if self._run.bus.handlers(MapProgressed):
            counts = {"map_size": self._size, "counts": self._counts()}
            self._run.publish(MapProgressed, {"timestamp": now_ns / 1e9, **counts, **self._who()})

    def _counts(self) -> MapCounts:
        return MapCounts(self._done, self._failed, self._cached)

    def _window(self, items: "Items") -> Callable[[], int]:
        """Return a function that returns the number of items to have at work: as many as there are places."""
        places = None
        with suppress(Exception):  # a factory that raises does so again for the item itself, and its error names it
            places = self._run.places(_item_node(self._node, 0, items[0], items.positional))

        def window() -> int:
            size = None if places is None else places.size
            return MAP_WINDOW if size is None else max(1, size)

        return window

    def _work(self, index: int, item: dict[str, Any], positional: int) -> TaskExecution:
        try:
            node = _item_node(self._node, index, item, positional)
        except Exception as error:
            self._fail_item(index, error)
            raise
        return TaskExecution(
            self._run,
            self._resolver,
            node,
            node,
            backing_off=self._limiter.back_off,
            map_id=self._node.id,
            map_index=index,
            item=node.literal_inputs,
        )

    def _fail_item(self, index: int, error: Exception) -> None:
        """Publish the failure of an item for which the factory made no task."""
        run, factory = self._run, self._node.mapping_factory
        start_ns, name = run.clock.now_ns(), getattr(factory, "name", type(factory).__name__)
        place = f"task {name!r}, item {index}"
        add_task_note(error, place, attempt_start_ns=start_ns, now_ns=start_ns)
        run.task_failed(error, place)
        item = {"task_id": item_id(self._node.id, index), "task_name": name}
        item |= {"map_id": self._node.id, "map_index": index}
        run.emit(TaskExecutionStarted, start_ns=start_ns, **item)
        failed = {"status": status_of("error"), "result": "error", "start_ns": start_ns, "end_ns": start_ns}
        run.emit(TaskExecutionFinished, **failed, **run.error_fields(error), **item)

    def _started(self) -> None:
        if (parts := self._run.trace.parts).is_active:
            parts.start(self._node.id, self._node.name)
            parts.expect(self._node.id, self._node.name, self._size or 0)
        self._run.emit(TaskExecutionStarted, map_size=self._size, start_ns=self._start_ns, **self._who())

    def _finished(self, result: str, **failed: Any) -> None:
        end_ns = self._run.clock.now_ns()
        self._run.emit(
            TaskExecutionFinished,
            status=status_of(result),
            duration=seconds(self._start_ns, end_ns),
            result=result,
            start_ns=self._start_ns,
            end_ns=end_ns,
            map_size=self._size,
            counts=None if self._size is None else self._counts(),
            dependencies=self._consumed(self._node),
            waits=self._waits,
            **failed,
            **self._who(),
        )

    def _who(self) -> dict[str, Any]:
        return {"task_id": self._node.id, "task_name": self._node.name, "kind": "map"}


class _WindowLimiter:
    """Runs numbered coroutines in their order, at most a window of them at a time, and a burst in a turn of the loop.

    Coroutines that wait for the delay of a retry do not count, but at most `MAP_WINDOW` are in flight.
    """

    def __init__(self, group: TaskGroup, window: Callable[[], int], backpressure: CombinedBackpressure) -> None:
        self._group = group
        self._window = window
        self._in_flight = self._backing_off = 0
        self._throttle = StartThrottle(backpressure, group, self._book)
        self._is_booked = False

    async def run(self, work: Callable[[int], Coroutine[Any, Any, None]], count: int) -> None:
        self._work = work
        self._next, self._count, self._open = 0, count, count
        try:
            await self._group.run(self._fill)
        finally:
            self._throttle.close()
            del self._work

    def _fill(self) -> None:
        group = self._group
        burst = 0
        if not group.over and not self._throttle.is_on():
            free = min(self._window() + self._backing_off, MAP_WINDOW) - self._in_flight
            burst = max(0, min(BURST, free, self._count - self._next))
        for index in range(self._next, self._next + burst):
            group.spawn(self._done(index))
        self._next += burst
        self._in_flight += burst
        self._is_booked = False
        if burst == BURST:
            self._book()

    def _book(self) -> None:
        if not self._is_booked and self._next < self._count:
            self._is_booked = True
            asyncio.get_running_loop().call_soon(self._fill)

    def back_off(self, change: int) -> None:
        """Count one coroutine more, or less, that waits for the delay of a retry."""
        self._backing_off += change
        self._book()

    async def _done(self, index: int) -> None:
        await self._work(index)
        self._in_flight -= 1
        self._open -= 1
        if self._open:
            self._book()
        else:
            self._group.finish()


class Items:
    """The inputs of each index, in lists of their own: a value is freed with the last item that has it.

    The first `positional` inputs are positional arguments.
    """

    def __init__(self, lists: dict[str, list[Any]], size: int, positional: int) -> None:
        self._lists = {name: values.copy() for name, values in lists.items()}
        self._size = size
        self.positional = positional

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: values[index] for name, values in self._lists.items()}

    def take(self, index: int) -> dict[str, Any]:
        """The arguments of an index, which are no longer held here afterwards."""
        item = self[index]
        for values in self._lists.values():
            values[index] = None
        return item


def zip_items(node: Node, inputs: dict[str, Any]) -> Items:
    """The items of a map's lists, which must be equally long. Each list is read once.

    Raises:
        TypeError: An argument has no items in an order.
        ValueError: The lists have mismatched lengths.
    """
    lists = {name: _as_list(node, name, value, len(inputs)) for name, value in split_arguments(inputs, 0)[1].items()}
    sizes = {name: len(values) for name, values in lists.items()}
    if len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name}: {size}" for name, size in sizes.items())
        raise ValueError(f"{node.name}: mismatched lengths of its lists ({shown}); all must be equally long")
    names = takewhile(lists.__contains__, getattr(node.mapping_factory, "positional_only", ()))
    args = [lists.pop(name) for name in names]
    return Items(join_arguments(args, lists), next(iter(sizes.values()), 0), len(args))


def _as_list(node: Node, name: str, value: Any, count: int) -> list[Any]:
    if type(value) is list:
        return value
    place = f"{node.name}: '{name}'"
    require_items(value, place, is_alone=count == 1)
    try:
        return [item for item in value]  # noqa: C416 - list() also calls the length of the value
    except TypeError as error:
        raise TypeError(f"{place} must be a list, got {type(value).__name__}: {error}") from error


def _item_node(node: Node, index: int, item: dict[str, Any], positional: int) -> Node:
    factory: Any = node.mapping_factory
    label = node.label
    if not hasattr(factory, "func"):
        factory, item, positional, own_label = _from_call(factory, item)
        label = own_label if label is None else label
    return Node(
        item_id(node.id, index),
        factory.name,
        callable_obj=factory.func,
        retry_policy=node.retry_policy,
        cache_policy=node.cache_policy,
        constraints=node.constraints,
        literal_inputs=item,
        threaded=node.threaded,
        positional=positional,
        label=label,
    )


def _from_call(factory: Any, item: dict[str, Any]) -> tuple[Any, dict[str, Any], int, Any]:
    """Task, inputs, number of positional arguments and label of the lazy result of a factory other than a Task."""
    lazy = factory(**split_arguments(item, 0)[1])
    if not isinstance(lazy, LazyResult):
        raise TypeError(f"Cannot map over {factory!r}: calling it must give a lazy result, got {type(lazy).__name__}")
    return lazy.task, join_arguments(lazy.args, lazy.kwargs), len(lazy.args), label_of(lazy)
