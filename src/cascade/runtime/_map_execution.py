"""Executes a map: one task for each index of its lists, with a limited number of tasks in flight."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from cascade.graph.model import Node, NodeWithOptions, join_arguments, split_arguments
from cascade.runtime._failures import continue_after, publish_failure
from cascade.runtime._map_items import Items, zip_items
from cascade.runtime._plan import PlannedNode
from cascade.runtime._retried_execution import RetriedExecution
from cascade.runtime._run_context import RunContext, seconds
from cascade.runtime._task_execution import TaskExecution
from cascade.runtime._task_group import WindowLimiter
from cascade.runtime._timeouts import execution_type
from cascade.runtime.control.admission import Permit
from cascade.runtime.control.limiters import AdmissionKey
from cascade.runtime.events import (
    MapCounts,
    MapProgressed,
    TaskBlocked,
    TaskExecutionFinished,
    TaskExecutionStarted,
    Wait,
)
from cascade.runtime.exceptions import add_task_note, is_cancellation
from cascade.runtime.flow import FlowManager
from cascade.runtime.resolvers import ArgumentResolver
from cascade.spec.failure import Failure
from cascade.spec.lazy_types import LazyResult, options_of
from cascade.spec.options import CallOptions
from cascade.telemetry.identity import item_id
from cascade.telemetry.sanitize import masked_tags

MAP_WINDOW = 4096
"""Largest number of items of one map in flight. It exceeds the size of common worker pools, and the coroutines need
about 10 MiB."""

PROGRESS_NS = 1_000_000_000
"""Smallest time between two progress events of one map, in nanoseconds."""


class MapExecution:
    """One execution of a map: its events, and a `TaskExecution` for each item.

    It holds no resources, because its items need them.
    """

    def __init__(
        self,
        run: RunContext,
        resolver: ArgumentResolver,
        planned: PlannedNode,
        flow: FlowManager,
    ) -> None:
        self._run = run
        self._resolver = resolver
        self._planned = planned
        self._node = planned.node
        self._flow = flow
        self._size: int | None = None
        self._done = self._failed = self._cached = 0
        self._first_error: Exception | None = None
        self._start_ns = self._progress_ns = 0
        self._waits: tuple[Wait, ...] = ()

    @property
    def has_failed_items(self) -> bool:
        return self._failed > 0

    async def execute(self) -> list[Any]:
        """Run all items and return their values in the order of the lists.

        Raises:
            ValueError: The lists are not equally long.
            BaseException: The exception of the first item that failed.
        """
        if not self._run.has_control:
            return await self._execute()
        permit = Permit(self._run.admission, AdmissionKey(self._run.run_ids, self._node.name, is_map=True))
        if not permit.try_acquire():
            blocked = partial(self._run.emit, TaskBlocked, **self._identity())
            self._waits = await permit.acquire(blocked, self._run.clock.now_ns)
        try:
            return await self._execute()
        finally:
            permit.release()

    async def _execute(self) -> list[Any]:
        self._start_ns = self._progress_ns = self._run.clock.now_ns()
        try:
            items = zip_items(self._node, self._resolver.resolve(self._planned).inputs)
        except Exception as error:
            now_ns = self._run.clock.last_ns
            add_task_note(error, f"task {self._node.name!r}", attempt_start_ns=self._start_ns, now_ns=now_ns)
            self._publish_started()
            self._publish_finished(self._run.outcome(error, "error"))
            raise
        self._flow.release(self._planned.release_arguments(), self._run.state)
        self._size = len(items)
        self._publish_started()
        try:
            values = await self._run_items(items)
        except BaseException as error:
            outcome = self._run.outcome(error)
            if not is_cancellation(error):  # the event of the item has the error
                del outcome["error"], outcome["exception"]
            self._publish_finished(outcome)
            raise
        self._publish_finished(self._run.outcome(None))
        return values

    async def _run_items(self, items: Items) -> list[Any]:
        values: list[Any] = [None] * len(items)
        if values:
            window = self._window(items)
            self._limiter = limiter = WindowLimiter(
                self._run, lambda i: self._run_item(i, items, values), len(items), window, MAP_WINDOW
            )
            try:
                await limiter.run()
            finally:
                del self._limiter  # it refers to this object
        if (error := self._first_error) is not None:
            self._first_error = None
            try:
                raise error
            finally:
                del error  # it refers to this frame
        return values

    async def _run_item(self, index: int, items: Items, values: list[Any]) -> None:
        execution: TaskExecution | None = None
        try:
            execution = self._execution_of(index, items.take(index), items.positional)
            values[index] = await execution.execute()
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit is a failure too
            self._failed += 1
            if not self._run.continues_after(error, self._node):
                raise
            values[index] = self._continue_after(error, index, execution)
        else:
            self._done += 1
            self._cached += not execution.start_ns  # a cached value: the task has not started
        ended = self._done + self._failed
        if ended < len(items) and self._run.clock.last_ns - self._progress_ns >= PROGRESS_NS:
            self._publish_progress()

    def _continue_after(self, error: Exception, index: int, execution: TaskExecution | None) -> Failure:
        """Record the failure of an item that does not stop the other items, and return its value."""
        is_allowed = self._node.allow_failure
        if not is_allowed and self._first_error is None:
            self._first_error = error
        node = self._item_without_factory(index) if execution is None else execution.node
        return continue_after(self._run, error, node, execution, map_index=index, is_allowed=is_allowed)

    def _publish_progress(self) -> None:
        self._progress_ns = self._run.clock.last_ns
        self._run.emit(MapProgressed, map_size=self._size, counts=self._counts(), **self._identity())

    def _counts(self) -> MapCounts:
        return MapCounts(self._done, self._failed, self._cached)

    def _window(self, items: Items) -> Callable[[], int]:
        """Return a function that returns the largest number of items in flight: the number of the executor's slots."""
        slots = None
        with suppress(Exception):  # the factory raises the same error for the item itself
            slots = self._run.slots(_item_node(self._node, 0, items[0], items.positional))

        def window() -> int:
            size = None if slots is None else slots.size
            return MAP_WINDOW if size is None else max(1, size)

        return window

    def _execution_of(self, index: int, item: dict[str, Any], positional: int) -> TaskExecution:
        try:
            node = _item_node(self._node, index, item, positional)
        except Exception as error:
            self._fail_item(index, error)
            raise
        given = self._run, self._resolver, node, self._planned, self._node.id, index, node.literal_inputs
        if node.retry_policy is None and node.timeout is None:
            execution = TaskExecution(*given)
        else:
            kind = execution_type(node)
            execution = kind(*given, sleep=self._limiter.sleep) if issubclass(kind, RetriedExecution) else kind(*given)
        if self._run.meter is not None:
            execution.ready_ns = self._start_ns
        return execution

    def _fail_item(self, index: int, error: Exception) -> None:
        """Publish the failure of an item whose factory raised an error."""
        node = self._item_without_factory(index)
        description = f"task {node.name!r}, item {index}"
        if not self._run.continues_after(error, self._node):
            self._run.task_failed(error, description)
        item = {"map_id": self._node.id, "map_index": index}
        publish_failure(self._run, error, node, description, is_allowed=self._node.allow_failure, **item)

    def _item_without_factory(self, index: int) -> Node:
        """Return the node of an item whose factory raised an error."""
        factory = self._node.mapping_factory
        return Node(item_id(self._node.id, index), getattr(factory, "name", type(factory).__name__))

    def _publish_started(self) -> None:
        if (parts := self._run.trace.parts).is_active:
            parts.start(self._node.id, self._node.name)
            parts.expect(self._node.id, self._node.name, self._size or 0)
        self._run.emit(TaskExecutionStarted, map_size=self._size, start_ns=self._start_ns, **self._identity())

    def _publish_finished(self, outcome: dict[str, Any]) -> None:
        end_ns = self._run.clock.now_ns()
        self._run.emit(
            TaskExecutionFinished,
            duration=seconds(self._start_ns, end_ns),
            start_ns=self._start_ns,
            end_ns=end_ns,
            map_size=self._size,
            counts=None if self._size is None else self._counts(),
            dependencies=self._resolver.dependencies(self._planned),
            waits=self._waits,
            **outcome,
            **self._identity(),
        )

    def _identity(self) -> dict[str, Any]:
        identity: dict[str, Any] = {"task_id": self._node.id, "task_name": self._node.name, "kind": "map"}
        if self._node.tags:
            identity["tags"] = tuple(masked_tags(self._node.tags))
        return identity


def _item_node(node: Node, index: int, item: dict[str, Any], positional: int) -> Node:
    factory: Any = node.mapping_factory
    options = node.options if isinstance(node, NodeWithOptions) else None
    if not hasattr(factory, "func"):
        lazy = _call_factory(factory, item)
        factory, item, positional = lazy.task, join_arguments(lazy.args, lazy.kwargs), len(lazy.args)
        own = CallOptions(node.retry_policy, node.cache_policy, node.constraints) if options is None else options
        options = own.over(options_of(lazy))
    new = (Node if options is None else NodeWithOptions)(
        item_id(node.id, index),
        factory.name,
        callable_obj=factory.func,
        retry_policy=node.retry_policy,
        cache_policy=node.cache_policy,
        constraints=node.constraints,
        literal_inputs=item,
        threaded=node.threaded,
        positional=positional,
    )
    if options is not None and isinstance(new, NodeWithOptions):
        new.set_options(options)
    return new


def _call_factory(factory: Any, item: dict[str, Any]) -> LazyResult[Any]:
    """Call a factory that is not a Task, and return its lazy result."""
    lazy = factory(**split_arguments(item, 0)[1])
    if not isinstance(lazy, LazyResult):
        raise TypeError(f"Cannot map over {factory!r}: calling it must return a lazy result, got {type(lazy).__name__}")
    return lazy
