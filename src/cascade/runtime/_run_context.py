"""State of one run: id, clock, parameters, bus, executor, results."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from cascade._context_managers import context_manager
from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.graph.model import Node
from cascade.runtime._labels import Labels
from cascade.runtime._left_place import LeftPlace
from cascade.runtime._meter import Meter
from cascade.runtime._task_cache import RunCaches
from cascade.runtime.bus import Handler, MessageBus
from cascade.runtime.control.admission import Admission, Permit
from cascade.runtime.control.limiters import AdmissionKey
from cascade.runtime.events import ErrorInfo, Event, FailedTask, LaterError, RunStillStopping
from cascade.runtime.exceptions import (
    AnyFuture,
    StillRunning,
    Tracebacks,
    add_later_error,
    cancellation_text,
    is_by_signal,
    is_cancellation,
    result_of,
    traceback_of,
)
from cascade.runtime.guard import FAULTS
from cascade.runtime.protocols import Executor, ExecutorSlots, Slot, SlotProvider, Tracing
from cascade.runtime.resource_manager import ResourceManager
from cascade.runtime.state import InMemoryStateBackend
from cascade.runtime.task_context import CURRENT_TASK, TaskContext
from cascade.runtime.threads import leave_running
from cascade.spec.failure import Failure
from cascade.spec.protocols import StateBackend
from cascade.telemetry.identity import RunTrace
from cascade.telemetry.limits import MAX_LATER_ERRORS
from cascade.telemetry.sanitize import error_message, error_text, stack_text

logger = get_logger(__name__)

Clock = Callable[[], int]
"""Returns the time in nanoseconds since the Unix epoch."""
MAX_INTERRUPTED = 5
"""Interrupted tasks in the text of a TimeoutError."""
REPORT_DELAY = 1.0
"""Seconds after which a run that a signal has cancelled reports the tasks that it waits for."""

_ENGINE_FILES = ("/cascade/runtime/", "/cascade/adapters/", "/concurrent/futures/", "/asyncio/", "/contextlib.py")


class RunClock:
    """Wall-clock time that does not run backwards within a run when the system's clock is set back.

    Attributes:
        last_ns: The time that `now_ns` returned last; 0 before the first call.
    """

    def __init__(self, clock: Clock = time.time_ns) -> None:
        self._clock = clock
        self.last_ns = 0

    def now_ns(self) -> int:
        now = self._clock()
        if now > self.last_ns:  # noqa: PLR1730 - `max` costs as much as the clock
            self.last_ns = now
        return self.last_ns


@dataclass(eq=False, slots=True)
class RunContext:
    """One run: its id, parameters, results, executor and bus.

    Attributes:
        new_context: Returns a copy of the context variables of the caller of `run`. Each attempt runs in its own copy.
        admission: Grants the permits of the tasks.
        has_control: Whether constraints can block tasks.
        run_ids: The ids of the run and of the runs that it is nested in.
        slots: Returns the executor's slots for a node of the plan; None if the node needs no slot.
        failure: The error that stops the run.
        stop_reason: The reason for the cancellation of its tasks.
        left_running: The names of cancelled tasks whose functions still run, and of work that a signal cannot interrupt.
        is_cancelled: Whether the run was cancelled from outside.
        timeout: The limit of the run in seconds; None for no limit.
        fail_fast: Whether the failure of a task stops the run.
        failures: The failures after which the run continued.
        failed_tasks: The first of them, as data for the last message.
        first_error: The first error of a task with `fail_fast=False`, which the run raises at its end.
        interrupted: The first tasks that were running when the run was cancelled.
        interrupted_count: The number of all such tasks.
        has_left_function: Whether a function in a thread has outlived its timeout.
        at_end: Functions that the end of the run calls.
        meter: Measures the calls of all tasks; None if no subscriber uses the measures.
        slot_meter: Measures the calls of tasks that hold a slot of the executor, such as a thread: `meter`, or a meter of
            samples; None if no subscriber uses the measures.
    """

    run_id: str
    start_ns: int
    params: dict[str, Any]
    trace: RunTrace
    bus: MessageBus
    executor: Executor
    state: StateBackend
    capacity: ResourceManager
    new_context: Callable[[], Context]
    admission: Admission
    has_control: bool = False
    tracing: Tracing | None = None
    run_ids: tuple[str, ...] = ()
    clock: RunClock = field(default_factory=RunClock)
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.get_running_loop)
    resources: dict[str, Any] = field(default_factory=dict)
    failure: BaseException | None = None
    stop_reason: str = ""
    left_running: dict[int, str] = field(default_factory=dict)
    is_cancelled: bool = False
    timeout: float | None = None
    fail_fast: bool = True
    failures: list[Failure] = field(default_factory=list)
    failed_tasks: list[FailedTask] = field(default_factory=list)
    first_error: Exception | None = None
    tracebacks: Tracebacks = field(default_factory=Tracebacks)
    interrupted: list[str] = field(default_factory=list)
    interrupted_count: int = 0
    has_left_function: bool = False
    at_end: set[Callable[[], None]] = field(default_factory=set)
    later_errors: list[LaterError] = field(default_factory=list)
    labels: Labels = field(default_factory=Labels)
    caches: RunCaches = field(default_factory=RunCaches)
    slots: Callable[[Any], ExecutorSlots | None] = field(init=False)
    meter: Meter | None = None
    slot_meter: Meter | None = None
    _keys: dict[tuple[str, ExecutorSlots | None], AdmissionKey] = field(default_factory=dict)
    _failed_operation: str = ""
    _is_signalled: bool = False
    _report_timer: asyncio.TimerHandle | None = None

    def __post_init__(self) -> None:
        self.slots = self.executor.slots if isinstance(self.executor, SlotProvider) else lambda _: None
        if self.bus.measures_threads:
            outer = getattr(CURRENT_TASK.get(), "run", None)  # a task of another process has none
            self.slot_meter = Meter(getattr(outer, "slot_meter", None), of_tasks=self.bus.measures_tasks)
            self.meter = self.slot_meter if self.bus.measures_tasks else None

    def release(self) -> None:
        """Drop the values of a run that has ended: exceptions and background tasks of its tasks may refer to the run."""
        self.state = InMemoryStateBackend(self.run_id)
        self.params = {}
        self.resources = {}
        self.failure = self.first_error = None
        for release in tuple(self.at_end):
            release()

    def continues_after(self, error: BaseException, node: Node) -> TypeGuard[Exception]:
        """Whether the run continues after this error of a node, or of an item of a map."""
        return (node.allow_failure or not self.fail_fast) and issubclass(type(error), Exception)

    def fail(self, error: BaseException) -> str:
        """Record the error that stops the run, and return the reason for the cancellation of the other tasks."""
        if self.failure is None:
            self.failure = error
            ended = "was cancelled" if is_cancellation(error) else "failed"
            self.stop_reason = self.stop_reason or f"cancelled because {self._failed_operation or 'the run'} {ended}"
        return self.stop_reason

    def cancel(self, error: BaseException) -> str:
        """Record that the run is cancelled from outside, and return the reason for the cancellation of its tasks."""
        reason = cancellation_text(error) if is_cancellation(error) else "cancelled"
        if self.failure is not None and reason == self.stop_reason:  # the run itself cancels a map
            return reason
        self.is_cancelled = True
        self.stop_reason = self.stop_reason or reason
        if is_by_signal(reason) and not self._is_signalled:
            self._is_signalled = True
            self._report_later()
        return self.stop_reason

    def task_failed(self, error: BaseException, operation: str) -> None:
        """Store the name of the task that stops the run, or add a later error to the first one."""
        if self.is_cancelled and is_cancellation(error):
            self.interrupted_count += 1
            if len(self.interrupted) < MAX_INTERRUPTED:
                self.interrupted.append(operation)
        elif self.failure is None:
            self._failed_operation = operation
        else:
            self.add_later_error(self.failure, error, operation)

    def error_fields(self, error: BaseException) -> dict[str, Any]:
        """Return the fields `error` and `exception` of an event. A cancellation has no exception."""
        if is_cancellation(error):
            return {"error": self.stop_reason or cancellation_text(error)}
        return {"error": error_text(error), "exception": error_info(error)}

    def outcome(self, error: BaseException | None, result: str = "") -> dict[str, Any]:
        """Return the fields `status`, `result`, `error` and `exception` of the event for the end of an operation."""
        if error is None:
            return {"status": "Succeeded", "result": "success"}
        result = result or result_of(error)
        status = "Cancelled" if result == "cancellation" else "Failed"
        return {"status": status, "result": result, **self.error_fields(error)}

    async def leave_running(self, cancelled: StillRunning, name: str, permit: Permit | None = None) -> None:
        """Handle a cancelled function that cannot be interrupted. A failed run waits for its end, a cancelled one does not.

        The function keeps the slot of the permit until it ends: a cancelled run may be nested in one that continues.
        """
        self.add_left_running(cancelled.work, name)
        if permit is not None and (slot := permit.take_slot()) is not None:
            self.leave_place(cancelled.work, slot)
        if self.failure is not None and not self.is_cancelled:
            ended = asyncio.Event()
            cancelled.work.add_done_callback(lambda _: self.loop.call_soon_threadsafe(ended.set))
            await ended.wait()

    def leave_place(
        self, work: AnyFuture, slot: Slot | None, permit: Permit | None = None, amounts: dict[str, float] | None = None
    ) -> None:
        """Leave a slot, a permit and resources to a function that still runs, until it ends."""
        LeftPlace(self.loop, self.at_end, self.capacity, slot, permit, amounts).release_after(work)

    def add_left_running(self, work: AnyFuture, name: str) -> None:
        """Record a task whose function cannot be interrupted, until the function ends."""
        key = id(work)
        self.left_running[key] = name
        work.add_done_callback(lambda _: self.left_running.pop(key, None))

    @context_manager
    def waiting_for(self, name: str) -> Iterator[None]:
        """Record work that a signal cannot interrupt, while the run waits for it in the block."""
        key = id(name)
        self.left_running[key] = name
        self._report_later()
        try:
            yield
        finally:
            self.left_running.pop(key, None)

    def _report_later(self) -> None:
        if self._is_signalled:
            if self._report_timer is not None:
                self._report_timer.cancel()
            self._report_timer = asyncio.get_running_loop().call_later(REPORT_DELAY, self.report_still_stopping)

    def report_still_stopping(self) -> None:
        """Publish the names of the tasks that still run, if a signal has cancelled the run."""
        if self._report_timer is not None:
            self._report_timer.cancel()
        if self.left_running and self._is_signalled:
            leave_running(self.left_running.__len__)
            self.emit(RunStillStopping, work=tuple(self.left_running.values()))

    def add_later_error(self, first: BaseException, later: BaseException, operation: str) -> None:
        """Add a later error as a note to `first`, which the run raises, and as an event to the span of the run.

        `operation` is the subject of the note's sentence: "the teardown of resource 'db'". A cancellation is no error.
        """
        if later is first or is_cancellation(later):
            return
        add_later_error(first, later, operation)
        if len(self.later_errors) < MAX_LATER_ERRORS:
            self.later_errors.append(LaterError(self.clock.now_ns(), error_info(later)))

    def permit(self, name: str, node: Any) -> Permit | None:
        """Return a permit for a task of this name; None if it needs no slot and no constraint can block it.

        `node` is the node that the executor gets.
        """
        slots = self.slots(node)
        if slots is None and not self.has_control:
            return None
        key = self._keys.get((name, slots))
        if key is None:  # one for all items of a map
            key = self._keys[name, slots] = AdmissionKey(self.run_ids, name, slots=slots)
        return Permit(self.admission, key)

    def emit(self, event_type: type[Event], **fields: Any) -> None:
        """Publish an event of this run, if it has a handler."""
        succeeded, item = fields.get("status") == "Succeeded", fields.get("map_id") is not None
        if handlers := self.bus.handlers(event_type, succeeded=succeeded, item=item):
            fields["timestamp"] = self.clock.now_ns() / 1e9
            self.publish(event_type, fields, handlers)

    def publish(self, event_type: type[Event], fields: dict[str, Any], handlers: tuple[Handler, ...]) -> None:
        """Publish an event of this run with these fields and the run_id to its handlers."""
        fields["run_id"] = self.run_id
        self.bus.call(handlers, event_type.from_fields(fields))

    def enter_span(self, task: TaskContext) -> AbstractContextManager[None] | None:
        """Make the task's span current, if the connector supports it. Returns the argument for `leave_span`."""
        if self.tracing is None:
            return None
        try:
            span = self.tracing.activate(task)
            span.__enter__()
        except FAULTS as error:
            raise_in_tests(error)
            self._disable_tracing()
            return None
        return span

    def leave_span(self, span: AbstractContextManager[None] | None) -> None:
        try:
            if span is not None:
                span.__exit__(None, None, None)
        except FAULTS as error:
            raise_in_tests(error)
            self._disable_tracing()

    def _disable_tracing(self) -> None:
        if self.tracing is not None:
            logger.exception(  # noqa: LOG004 - called from exception handlers
                "%s failed to activate a span; the run continues without it", type(self.tracing).__name__
            )
        self.tracing = None


def seconds(start_ns: int, end_ns: int) -> float:
    return (end_ns - start_ns) / 1e9


def error_info(error: BaseException) -> ErrorInfo:
    """Return the exception as data. The stack trace begins at the user's code."""
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return ErrorInfo(name, error_message(error), stack_text(without_engine_frames(error)))


def without_engine_frames(error: BaseException) -> BaseException:
    """Remove the engine's frames from the head of the traceback, without a call of the exception's class."""
    trace = traceback_of(error)
    while trace is not None and any(part in trace.tb_frame.f_code.co_filename for part in _ENGINE_FILES):
        trace = trace.tb_next
    return BaseException.with_traceback(error, trace) if trace is not None else error
