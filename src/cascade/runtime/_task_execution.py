"""Executes one task: constraints, arguments, cache, call, release. `_retried_execution` adds the attempts of a retry policy."""

import asyncio
from collections.abc import Coroutine
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

from cascade.graph.model import Node
from cascade.runtime._plan import PlannedNode, name_of_function
from cascade.runtime._run_context import RunContext, seconds
from cascade.runtime._task_cache import MISS, CachedCall
from cascade.runtime.bus import Handler
from cascade.runtime.control.admission import Permit
from cascade.runtime.events import (
    ErrorInfo,
    TaskBlocked,
    TaskEvent,
    TaskExecutionFinished,
    TaskExecutionStarted,
    TaskSkipped,
    Wait,
)
from cascade.runtime.exceptions import StillRunning, add_task_note, append_bounded, is_cancellation
from cascade.runtime.protocols import Slot
from cascade.runtime.resolvers import ArgumentResolver, Arguments
from cascade.runtime.run_counts import CACHE_HIT
from cascade.runtime.task_context import CURRENT_TASK, CallUsage, TaskContext
from cascade.spec.nested import ATOMS, require_values
from cascade.telemetry.trace_budget import Child


class TaskExecution:
    """One execution of a task, or of one item of a map. The class attributes are the state before the start.

    Attributes:
        planned: The node of the plan; for an item, the node of its map.
        plan_node: The node that the executor gets.
        item: The inputs of an item of a map.
        event_fields: The fields of all events with the label and the tags; None without them.
        start_ns: The first start; 0 before it.
        attempt: The number of the current attempt, from 1; 0 without a retry policy.
        arguments: The arguments of the call; None before they are resolved, and after the end.
        permit: None if the task needs no slot of the executor and no constraint can block it.
        amounts: The amounts of system resources that the task holds.
        cached: The call for the cache of the task; None without a cache, and before the lookup.
        child: The part and the size of the task in its trace; None before the start, and if nothing counts them.
        ready_ns: The time at which all inputs were available; 0 if nothing measures it.
        usage: The measures of the current call, and `cpu_ns` the sum of all calls; None if nothing uses them.
    """

    label: str | None = None
    event_fields: dict[str, Any] | None = None
    start_ns = attempt = attempt_start_ns = ready_ns = 0
    arguments: Arguments | None = None
    waits: tuple[Wait, ...] = ()
    permit: Permit | None = None
    amounts: dict[str, float] | None = None
    child: Child | None = None
    cached: CachedCall | None = None
    usage: CallUsage | None = None
    cpu_ns: int | None = None
    _task: TaskContext | None = None

    def __init__(
        self,
        run: RunContext,
        resolver: ArgumentResolver,
        node: Node,
        planned: PlannedNode,
        map_id: str | None = None,
        map_index: int | None = None,
        item: dict[str, Any] | None = None,
    ) -> None:
        self.run = run
        self.resolver = resolver
        self.node = node
        self.planned = planned
        self.plan_node = planned.plan_node if map_id is None else node
        self.map_id = map_id
        self.map_index = map_index
        self.item = item

    @property
    def task(self) -> TaskContext:
        """Identity of the current attempt, for the code of the task and for connectors."""
        if self._task is None:
            run, node = self.run, self.node
            self._task = TaskContext.from_fields(
                {
                    "run_id": run.run_id,
                    "task_id": node.id,
                    "name": node.name,
                    "trace": run.trace,
                    "attempt": self.attempt,
                    "map_id": self.map_id,
                    "map_index": self.map_index,
                    "start_ns": self.start_ns,
                    "attempt_start_ns": self.attempt_start_ns,
                    "child": self.child,
                    **(self.event_fields or {}),
                }
            )
        return self._task

    @property
    def held_slot(self) -> Slot | None:
        """The executor's slot that the task holds."""
        return None if self.permit is None else self.permit.slot

    @property
    def calls(self) -> int:
        """The number of calls of the function."""
        return self.attempt or int(self.attempt_start_ns > 0)

    def suspended(self) -> AbstractContextManager[None]:
        """Return a context manager that releases the permit while the task waits for a run that it has started."""
        return nullcontext() if self.permit is None else self.permit.suspended()

    async def execute(self) -> Any:  # noqa: C901, PLR0912 - the steps of a task in one coroutine: another one costs time
        """Execute the task and return its value, or the value of its cache.

        Raises:
            BaseException: The exception of the last attempt, unchanged.
        """
        if type(self.node) is not Node:
            self.event_fields = self.run.labels.event_fields_of(self.node, self._inputs, self.planned.edges)
            self.label = self.event_fields.get("label")
        if self.run.bus.backpressure.is_full():
            await self._wait_for_telemetry()
        permit = self.permit = self.run.permit(self.node.name, self.plan_node)
        try:
            try:
                has_cache = self.node.cache_policy is not None or self.run.caches.default is not None
                value = await self._look_up() if has_cache else MISS
                if value is MISS:
                    if self.node.constraints or (permit is not None and not permit.try_acquire()):
                        await self._acquire()
                    if self.arguments is None:
                        self._resolve()
            except Exception as error:
                self._fail_before_start(error)
                raise
            if value is MISS:
                self._publish_started()
                try:
                    value = await self._attempts()
                except BaseException as error:
                    self._finish(error)
                    raise
                self._finish(None, value)
                if self.cached is not None:
                    self._release()
                    await self.cached.store(value)
        except BaseException as error:
            self._report_failure(error)
            raise
        else:
            return value
        finally:
            if permit is not None or self.amounts:
                self._release()
            # A context variable may hold this object after the task's end.
            self.arguments = self.item = self.cached = None

    def _inputs(self) -> dict[str, Any] | None:
        """Return the inputs before the first event. None if the arguments have an error, which `_resolve` raises later."""
        try:
            return self.resolver.resolve(self.planned).inputs if self.item is None else self.item
        except Exception:  # noqa: BLE001
            return None

    def _report_failure(self, error: BaseException) -> None:
        run, description, begin_ns = self.run, self.describe(), self.attempt_start_ns or self.run.start_ns
        # Several tasks may raise one exception object: the note names the first task.
        if error is not run.failure:
            add_task_note(error, description, attempt_start_ns=begin_ns, now_ns=run.clock.last_ns)
        is_waiting = not self.start_ns and is_cancellation(error)
        if not is_waiting and not run.continues_after(error, self.planned.node):
            run.task_failed(error, description)

    async def _wait_for_telemetry(self) -> None:
        start_ns = self._publish_blocked("telemetry")
        while self.run.bus.backpressure.is_full():
            await self.run.bus.backpressure.room()
        self._add_wait("telemetry", start_ns)

    async def _acquire(self) -> None:
        """Acquire the permit and the resources. The task holds neither while it waits for the other one."""
        amounts = self.resolver.amounts(self.node) if self.node.constraints else {}
        capacity, permit = self.run.capacity, self.permit
        while True:
            if permit is not None and not permit.is_held and not permit.try_acquire():
                self.waits += await permit.acquire(partial(self._emit, TaskBlocked), self.run.clock.now_ns)
            if not amounts:
                return
            if capacity.try_acquire(amounts):
                self.amounts = amounts
                return
            if permit is not None:
                permit.release(unused=True)
            start_ns = self._publish_blocked("resource")
            await capacity.acquire(amounts)
            self.amounts = amounts
            self._add_wait("resource", start_ns)
            if permit is None or permit.try_acquire():
                return
            self._release_resources()

    def _release(self) -> None:
        if self.permit is not None:
            self.permit.release()
        self._release_resources()

    def _release_resources(self) -> None:
        amounts, self.amounts = self.amounts, None
        if amounts:
            self.run.capacity.release_nowait(amounts)

    def _resolve(self) -> Arguments:
        resolver, item = self.resolver, self.item
        arguments = resolver.resolve(self.planned) if item is None else resolver.with_resources(self.node, item)
        self.arguments = arguments
        return arguments

    async def _look_up(self) -> Any:
        """Return the value of the cache and publish the skip, or return `MISS`.

        A task whose value is stored needs neither a slot nor resources.
        """
        self.cached = self.run.caches.call_of(self.node, self._resolve(), self.describe)
        if self.cached is None or (value := await self.cached.look_up()) is MISS:
            return MISS
        require_values(value, f"The cache of task '{self.node.name}' returned")
        now = self.run.clock.now_ns()
        self._emit(TaskSkipped, reason=CACHE_HIT, **self._end_fields(now, now))
        return value

    def _attempts(self) -> Coroutine[Any, Any, Any]:
        """Call the function until an attempt succeeds."""
        return self._call(0, self.start_ns)

    async def _call(self, number: int, start_ns: int) -> Any:
        run, arguments = self.run, self.arguments
        assert arguments is not None  # noqa: S101 - for the type checker: resolved before the start
        self.attempt, self.attempt_start_ns, self._task = number, start_ns, None
        token = CURRENT_TASK.set(self)
        span = None if run.tracing is None else run.enter_span(self.task)
        meter = run.meter if self.permit is None else run.slot_meter
        usage = self.usage = None if meter is None else meter.begin()
        try:
            value = await run.executor.execute(self.plan_node, arguments.args, arguments.kwargs)
        except StillRunning as cancelled:
            await self._leave_running(cancelled)
            raise asyncio.CancelledError from None
        else:
            if (running := asyncio.current_task(run.loop)) is not None and running.cancelling():
                await asyncio.sleep(0)  # raises a cancellation that the function has requested and not awaited
        finally:
            if meter is not None and usage is not None and (cpu_ns := usage.cpu_ns) is not None:
                self.cpu_ns = cpu_ns + (self.cpu_ns or 0)
                meter.end(usage, cpu_ns)
            if span is not None:
                run.leave_span(span)
            CURRENT_TASK.reset(token)
        if type(value) not in ATOMS:
            require_values(value, f"Task '{self.node.name}' returned")
        return value

    async def _leave_running(self, cancelled: StillRunning) -> None:
        await self.run.leave_running(cancelled, self.node.name, self.permit)

    def describe(self) -> str:
        """Return the name of the task, with the item of the map, the label and the attempt."""
        item = "" if self.map_index is None else f", item {self.map_index}"
        item += "" if self.label is None else f" ({self.label!r})"
        policy = self.node.retry_policy
        attempt = f", attempt {self.attempt} of {policy.max_attempts + 1}" if policy and self.attempt else ""
        return f"task {self.node.name!r}{item}{attempt}"

    def _publish_started(self) -> None:
        self.start_ns = self.run.clock.now_ns()
        policy = self.node.retry_policy
        if (parts := self.run.trace.parts).is_active:
            retries = 0 if policy is None else policy.max_attempts
            self.child = parts.start(self.node.id, self.node.name, self.map_id, self.map_index, retries)
        if handlers := self.run.bus.handlers(TaskExecutionStarted, item=self.item is not None):
            attempt = 0 if policy is None else 1
            fields = {"timestamp": self.start_ns / 1e9, "start_ns": self.start_ns, "attempt": attempt}
            self._publish(TaskExecutionStarted, fields, handlers)

    def _fail_before_start(self, error: Exception) -> None:
        self.start_ns = self.run.clock.now_ns()
        self._emit(TaskExecutionStarted, start_ns=self.start_ns)
        self._finish(error, result="error")

    def _finish(self, error: BaseException | None, output: Any = None, result: str = "") -> None:
        """Publish the end of the task."""
        run, end_ns = self.run, self.run.clock.now_ns()
        handlers = run.bus.handlers(TaskExecutionFinished, succeeded=error is None, item=self.item is not None)
        if not handlers:
            return
        fields = run.outcome(error, result)
        fields["timestamp"], fields["duration"] = end_ns / 1e9, seconds(self.start_ns, end_ns)
        fields |= self._end_fields(self.start_ns, end_ns)
        if run.meter is not None:
            fields["queue_seconds"] = max(0, self.start_ns - self.ready_ns) / 1e9
            fields["cpu_seconds"] = None if self.cpu_ns is None else self.cpu_ns / 1e9
        if error is not None and self.planned.node.allow_failure:
            fields["is_allowed"] = run.continues_after(error, self.planned.node)
        if self.node.retry_policy is not None:
            fields |= self._attempt_fields(end_ns, fields["result"], fields.get("exception"))
        if run.bus.captured:
            fields["arguments"] = self.arguments.inputs if self.arguments else None
            fields["callable_obj"] = self.node.callable_obj
            fields["edges"] = self.planned.edges
            fields["output"] = output
        self._publish(TaskExecutionFinished, fields, handlers)

    def _attempt_fields(self, end_ns: int, result: str, exception: ErrorInfo | None) -> dict[str, Any]:  # noqa: ARG002
        """Return the fields about the attempts of a task with a retry policy."""
        return {}

    def _end_fields(self, start_ns: int, end_ns: int) -> dict[str, Any]:
        fields: dict[str, Any] = {"start_ns": start_ns, "end_ns": end_ns, "waits": self.waits}
        fields["function"] = name_of_function(self.node.callable_obj)
        fields["dependencies"] = self.resolver.dependencies(self.planned) if self.map_id is None else ()
        return fields

    def _publish_blocked(self, reason: str) -> int:
        start_ns = self.run.clock.now_ns()
        self._emit(TaskBlocked, reason=reason, start_ns=start_ns)
        return start_ns

    def _add_wait(self, reason: str, start_ns: int) -> None:
        self.waits = append_bounded(self.waits, Wait(reason, start_ns, self.run.clock.now_ns()))

    def _emit(self, event: type[TaskEvent], **fields: Any) -> None:
        if handlers := self.run.bus.handlers(event, item=self.item is not None):
            fields["timestamp"] = self.run.clock.now_ns() / 1e9
            self._publish(event, fields, handlers)

    def _publish(self, event: type[TaskEvent], fields: dict[str, Any], handlers: tuple[Handler, ...]) -> None:
        node = self.node
        fields["task_id"], fields["task_name"] = node.id, node.name
        if self.map_id is not None:
            fields["map_id"], fields["map_index"] = self.map_id, self.map_index
        if self.event_fields:
            fields |= self.event_fields
        self.run.publish(event, fields, handlers)
