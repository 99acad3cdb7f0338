"""One task from its constraints to its release: cache, Started, attempts, Finished."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from cascade._loggers import get_logger
from cascade.graph.model import Node
from cascade.runtime import task_context
from cascade.runtime._labels import fixed_label
from cascade.runtime._run_context import RunContext, seconds
from cascade.runtime.control.permit import Permit
from cascade.runtime.events import (
    Attempt,
    TaskBlocked,
    TaskEvent,
    TaskExecutionFinished,
    TaskExecutionStarted,
    TaskRetrying,
    TaskSkipped,
    Wait,
)
from cascade.runtime.exceptions import (
    StillRunning,
    Tracebacks,
    add_later_error,
    add_task_note,
    name_of,
    result_of,
    status_of,
    with_last,
)
from cascade.runtime.protocols import Place
from cascade.runtime.resolvers import ArgumentResolver, Arguments
from cascade.runtime.task_context import TaskContext, in_context
from cascade.spec.nested import ATOMS, require_values
from cascade.spec.retry import checked_seconds

logger = get_logger(__name__)

_MISS = object()
FIRST_RETRY = 2
"""Number of the first attempt that follows another one."""


@dataclass(eq=False, slots=True)
class TaskExecution:
    """One execution of a task. `call_node` is what the executor gets: the plan's own node. An item of a map has `item`.

    `consumed` returns the ids of the tasks whose values the node uses. `permit` is None if the task needs no place and no
    constraint can hold it back. `backing_off` is called with 1 before and with -1 after the delay of a retry.
    """

    run: RunContext
    resolver: ArgumentResolver
    node: Node
    call_node: Any
    consumed: Callable[[Node], tuple[str, ...]] | None = None
    backing_off: Callable[[int], None] | None = None
    map_id: str | None = None
    map_index: int | None = None
    label: str | None = None
    item: dict[str, Any] | None = None
    start_ns: int = 0
    attempt: int = 0
    attempt_start_ns: int = 0
    waits: tuple[Wait, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    attempt_count: int = 0
    amounts: dict[str, float] | None = None
    arguments: Arguments | None = None
    permit: Permit | None = None
    _task: TaskContext | None = None

    @property
    def task(self) -> TaskContext:
        """What the task's code, and a connector, may know of it."""
        if self._task is None:
            run, node = self.run, self.node
            self._task = TaskContext(
                run.run_id,
                node.id,
                node.name,
                run.trace,
                self.attempt,
                self.map_id,
                self.map_index,
                self.start_ns,
                self.attempt_start_ns,
                child=run.trace.parts.child(node.id),
                label=self.label,
            )
        return self._task

    async def perform(self) -> Any:
        """Do it and return its value, or the cache's.

        Raises:
            BaseException: What the task's last attempt raised, as it was raised.
        """
        if self.node.label is not None:
            self.label = self._make_label()
        if self.run.bus.backpressure.is_full():
            await self._wait_for_telemetry()
        permit = self.permit = self.run.permit(self.node.name, self.call_node)
        try:
            if self.node.constraints or (permit is not None and not permit.try_acquire()):
                await self._begin()
            return await self._run_or_recall()
        except BaseException as error:
            self._add_note(error)
            raise
        finally:
            if permit is not None:
                permit.release()
            if self.amounts:
                await self._give_back()
            # A context variable may hold this object after the task's end.
            self.arguments = self.item = self.consumed = None

    def _make_label(self) -> str | None:
        """The label, before the first event. An error of the arguments is raised later, when they are resolved for the call."""
        node, inputs = self.node, self.item
        if isinstance(node.label, str):
            return fixed_label(node)
        if inputs is None:
            try:
                inputs = self.resolver.resolve(node).inputs
            except Exception:  # noqa: BLE001
                return None
        return self.run.labels.label_of(node, inputs, self.resolver.edges_of(self.map_id or node.id))

    def _add_note(self, error: BaseException) -> None:
        run, place = self.run, self._place()
        if error is not run.failure:  # an exception object that several tasks raise names the first one
            begin_ns = self.attempt_start_ns or run.start_ns
            add_task_note(error, place, attempt_start_ns=begin_ns, now_ns=run.clock.last_ns)
        run.task_failed(error, place)

    def _place(self) -> str:
        """The task, the map's item and the attempt, as the note on an exception names them."""
        item = "" if self.map_index is None else f", item {self.map_index}"
        item += "" if self.label is None else f" ({self.label!r})"
        policy = self.node.retry_policy
        attempt = f", attempt {self.attempt} of {policy.max_attempts + 1}" if policy and self.attempt else ""
        return f"task {self.node.name!r}{item}{attempt}"

    async def _begin(self) -> None:
        try:
            await self._obtain()
        except Exception as error:
            self._fail_before_start(error)
            raise

    async def _wait_for_telemetry(self) -> None:
        start_ns = self._blocked("telemetry")
        while self.run.bus.backpressure.is_full():
            await self.run.bus.backpressure.room()
        self._waited("telemetry", start_ns)

    async def _obtain(self) -> None:
        """Wait until the task may start and has its resources, without holding what others need meanwhile."""
        if not self.node.constraints:
            await self._sit()
            return
        amounts = self.resolver.amounts(self.node)
        while not await self._take(amounts):
            pass

    async def _take(self, amounts: dict[str, float]) -> bool:
        await self._sit()
        if self.run.capacity.try_acquire(amounts):
            self.amounts = amounts
            return True
        self._leave(unused=True)
        start_ns = self._blocked("resource")
        await self.run.capacity.acquire(amounts)
        self.amounts = amounts
        self._waited("resource", start_ns)
        if self.permit is None or self.permit.try_acquire():
            return True
        await self._give_back()
        return False

    async def _give_back(self) -> None:
        amounts, self.amounts = self.amounts, None
        if amounts:
            await self.run.capacity.release(amounts)

    async def _sit(self) -> None:
        permit = self.permit
        if permit is not None and not permit.is_held and not permit.try_acquire():
            self.waits += await permit.acquire(partial(self._emit, TaskBlocked), self.run.clock.now_ns)

    def _leave(self, *, unused: bool = False) -> None:
        if self.permit is not None:
            self.permit.release(unused=unused)

    def _blocked(self, reason: str) -> int:
        start_ns = self.run.clock.now_ns()
        self._emit(TaskBlocked, reason=reason, start_ns=start_ns)
        return start_ns

    def _waited(self, reason: str, start_ns: int) -> None:
        self.waits = with_last(self.waits, Wait(reason, start_ns, self.run.clock.now_ns()))

    @property
    def held_place(self) -> Place | None:
        """The executor's place that the task holds."""
        return None if self.permit is None else self.permit.place

    def suspended(self) -> AbstractContextManager[None]:
        """The task waits for a run that it has started: it is not counted as running meanwhile."""
        return nullcontext() if self.permit is None else self.permit.suspended()

    async def _run_or_recall(self) -> Any:
        try:
            self.arguments = self._resolve()
            cached = self._recall(self.arguments.inputs)
        except Exception as error:
            self._fail_before_start(error)
            raise
        if cached is not _MISS:
            return cached
        self.start_ns = self.run.clock.now_ns()
        if (parts := self.run.trace.parts).is_active:
            policy = self.node.retry_policy
            retries = 0 if policy is None else policy.max_attempts
            parts.start(self.node.id, self.node.name, self.map_id, self.map_index, retries)
        if self.run.bus.handlers(TaskExecutionStarted, item=self.item is not None):
            attempt = 1 if self.node.retry_policy else 0
            self._publish(TaskExecutionStarted, timestamp=self.start_ns / 1e9, start_ns=self.start_ns, attempt=attempt)
        value = await self._attempt()
        self._save(self.arguments.inputs, value)
        return value

    def _resolve(self) -> Arguments:
        if self.item is None:
            return self.resolver.resolve(self.node)
        return self.resolver.with_resources(self.node, self.item)

    def _recall(self, inputs: dict[str, Any]) -> Any:
        if self.node.cache_policy is None:
            return _MISS
        value = self.node.cache_policy.check(self.node.id, inputs)
        if value is None:
            return _MISS
        if type(value) not in ATOMS:
            require_values(value, f"The cache of task '{self.node.name}' returned")
        self._leave(unused=True)
        now = self.run.clock.now_ns()
        self._emit(TaskSkipped, reason="CacheHit", start_ns=now, end_ns=now, **self._standing())
        return value

    def _save(self, inputs: dict[str, Any], value: Any) -> None:
        if self.node.cache_policy is None:
            return
        try:
            self.node.cache_policy.save(self.node.id, inputs, value)
        except Exception:
            # The task has succeeded: a cache that cannot keep its value costs the next run, not this one.
            logger.warning("The cache of %s could not save its value", self._place(), exc_info=True)

    async def _attempt(self) -> Any:
        number = 0 if self.node.retry_policy is None else 1
        tracebacks: Tracebacks | None = None
        while True:
            start_ns = self.run.clock.now_ns() if number > 1 else self.start_ns
            try:
                value = await (self._call(number, start_ns) if number < FIRST_RETRY else self._retry(number, start_ns))
            except Exception as error:
                delay = self._delay_after(number, error)
                if delay is None:
                    self._finish(number, start_ns, error)
                    raise
                end_ns = self._retrying(number, start_ns, error, delay)
                tracebacks = tracebacks or Tracebacks()
                tracebacks.restore(error)
            except BaseException as error:
                self._finish(number, start_ns, error)
                raise
            else:
                self._finish(number, start_ns, None, value)
                return value
            await self._wait_for_retry(end_ns, delay)
            number += 1

    async def _call(self, number: int, start_ns: int) -> Any:
        run, arguments = self.run, self.arguments
        assert arguments is not None  # noqa: S101 - for the type checker: resolved before the start
        self.attempt, self.attempt_start_ns, self._task = number, start_ns, None
        token = task_context.enter(self)
        span = None if run.tracing is None else run.enter_span(self.task)
        try:
            value = await run.executor.execute(self.call_node, arguments.args, arguments.kwargs)
        except StillRunning as cancelled:
            run.keep_running(cancelled.work, self.node.name)
            if run.failure is not None and not run.is_cancelled:
                await _end_of(cancelled)
            raise asyncio.CancelledError from None
        else:
            if (running := asyncio.current_task(run.loop)) is not None and running.cancelling():
                await asyncio.sleep(0)  # raises a cancellation that the function has requested and not awaited
        finally:
            if span is not None:
                run.leave_span(span)
            task_context.leave(token)
        if type(value) not in ATOMS:
            require_values(value, f"Task '{self.node.name}' returned")
        return value

    async def _retry(self, number: int, start_ns: int) -> Any:
        """Call the function again, without the context variables that an earlier attempt has set."""
        return await in_context(self.run.new_context(), self._call(number, start_ns))

    def _delay_after(self, number: int, error: Exception) -> float | None:
        """Seconds until the next attempt; None after the last one, or if the retry policy itself fails."""
        policy = self.node.retry_policy
        if policy is None or number > policy.max_attempts:
            return None
        try:
            return checked_seconds("delay_before", policy.delay_before(number))
        except Exception as broken:  # noqa: BLE001 - the task has failed: its own error is the first one
            add_later_error(error, broken, f"the retry policy of {self._place()}")
            return None

    def _retrying(self, number: int, start_ns: int, error: Exception, delay: float) -> int:
        """Publish the end of an attempt that is followed by another one. Returns the time of the end."""
        policy = self.node.retry_policy
        assert policy is not None  # noqa: S101 - for the type checker: only such tasks retry
        end_ns, fields, result = self.run.clock.now_ns(), self.run.error_fields(error), result_of(error)
        self.attempts = with_last(self.attempts, Attempt(number, start_ns, end_ns, fields["exception"], result))
        self.attempt_count += 1
        more = {"max_attempts": policy.max_attempts, "delay": delay, "start_ns": start_ns, "end_ns": end_ns}
        self._emit(TaskRetrying, attempt=number, result=result, **more, **fields)
        return end_ns

    async def _wait_for_retry(self, start_ns: int, delay: float) -> None:
        self._leave()
        try:
            try:
                await self._back_off(delay)
            finally:
                self._waited("retry", start_ns)
            if self.permit is not None and not self.permit.try_acquire():
                await self._give_back()  # a blocked task releases its resources
                await self._obtain()
                self._emit(TaskExecutionStarted, start_ns=self.run.clock.now_ns(), attempt=self.attempt + 1)
        except (Exception, asyncio.CancelledError) as stopped:
            self._finish(0, start_ns, stopped)
            raise

    async def _back_off(self, delay: float) -> None:
        if self.backing_off is None:
            await asyncio.sleep(delay)
            return
        self.backing_off(1)
        try:
            await asyncio.sleep(delay)
        finally:
            self.backing_off(-1)

    def _fail_before_start(self, error: Exception) -> None:
        self.start_ns = self.run.clock.now_ns()
        self._emit(TaskExecutionStarted, start_ns=self.start_ns)
        self._finish(0, self.start_ns, error, result="error")

    def _finish(
        self, number: int, start_ns: int, error: BaseException | None, output: Any = None, result: str = ""
    ) -> None:
        end_ns = self.run.clock.now_ns()
        if not self.run.bus.handlers(TaskExecutionFinished, succeeded=error is None, item=self.item is not None):
            return
        result, more = result or result_of(error), self.run.error_fields(error)
        if number:
            attempt = Attempt(number, start_ns, end_ns, more.get("exception"), result)
            self.attempts = with_last(self.attempts, attempt)
            self.attempt_count += 1
        if self.node.retry_policy is not None:
            more["attempts"], more["attempt_count"] = self.attempts, self.attempt_count
            more["max_attempts"] = self.node.retry_policy.max_attempts
        self._publish(
            TaskExecutionFinished,
            timestamp=end_ns / 1e9,
            status=status_of(result),
            duration=seconds(self.start_ns, end_ns),
            result=result,
            start_ns=self.start_ns,
            end_ns=end_ns,
            arguments=self.arguments.inputs if self.arguments else None,
            edges=self.resolver.edges_of(self.map_id or self.node.id),
            callable_obj=self.node.callable_obj,
            output=output,
            **self._standing(),
            **more,
        )

    def _standing(self) -> dict[str, Any]:
        dependencies = self.consumed(self.node) if self.consumed else ()
        return {"function": name_of(self.node.callable_obj), "dependencies": dependencies, "waits": self.waits}

    def _emit(self, event: type[TaskEvent], **fields: Any) -> None:
        if self.run.bus.handlers(event, item=self.item is not None):
            self._publish(event, timestamp=self.run.clock.now_ns() / 1e9, **fields)

    def _publish(self, event: type[TaskEvent], **fields: Any) -> None:
        node = self.node
        fields["task_id"], fields["task_name"] = node.id, node.name
        if self.map_id is not None:
            fields["map_id"], fields["map_index"] = self.map_id, self.map_index
        if self.label is not None:
            fields["label"] = self.label
        self.run.publish(event, fields)


async def _end_of(cancelled: StillRunning) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    cancelled.work.add_done_callback(lambda _: loop.call_soon_threadsafe(ended.set))
    await ended.wait()
