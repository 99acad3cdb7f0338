"""Identity of the task whose code is running."""

import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from types import coroutine
from typing import Any, Protocol, Self, TypeVar

from cascade.telemetry.identity import RunTrace, SpanLocation, SpanRef, span_id
from cascade.telemetry.trace_budget import Child

_T = TypeVar("_T")


@dataclass(frozen=True)
class TaskContext:
    """Identity of one task. An executor in another process carries `traceparent` and `tracestate`.

    Attributes:
        attempt: The number of the attempt, from 1; 0 without a retry policy.
        start_ns: The first start of the task, in nanoseconds since the Unix epoch.
        attempt_start_ns: The start of this attempt, in nanoseconds since the Unix epoch.
        kind: "task", or "resource" for the setup or teardown of a resource.
        child: The part and the size of the task in its trace.
        label: The label of the call.
        tags: The tags of the task, with secrets masked.
    """

    run_id: str
    task_id: str
    name: str
    trace: RunTrace
    attempt: int = 0
    map_id: str | None = None
    map_index: int | None = None
    start_ns: int = 0
    attempt_start_ns: int = 0
    kind: str = "task"
    child: Child | None = field(default=None, compare=False, repr=False)
    label: str | None = None
    tags: tuple[str, ...] = ()

    @classmethod
    def from_fields(cls, fields: dict[str, Any]) -> Self:
        """Create the object at half of the constructor's cost. The dict becomes its `__dict__`; fields may be missing."""
        task = object.__new__(cls)
        object.__setattr__(task, "__dict__", fields)
        return task

    @property
    def task(self) -> "TaskContext":
        return self

    @property
    def held_slot(self) -> None:
        """None: a resource, and a task of another process, have no slot here."""
        return

    @property
    def usage(self) -> None:
        """None: nothing uses the measures of a resource, or of a task of another process."""
        return

    def suspended(self) -> AbstractContextManager[None]:
        """Return a context manager without effect: a resource, and a task of another process, have no permit here."""
        return nullcontext()

    @property
    def location(self) -> SpanLocation:
        """Trace and parent of the span of the task."""
        if self.child is None:
            return self.trace.location_of(self.task_id, self.map_id)
        return self.trace.location_in(self.child.part)

    @property
    def span(self) -> SpanRef:
        """The span of the task."""
        return self.trace.ref(self.trace_id, span_id(self.run_id, self.task_id))

    @property
    def current_span(self) -> SpanRef:
        """The current span in the code of the task: the span of the attempt with a retry policy, else that of the task."""
        return self.trace.ref(self.trace_id, span_id(self.run_id, self.task_id, self.attempt))

    @property
    def parent_span_id(self) -> str:
        """The parent of the task's span: the map of an item, the run, or the root of their part."""
        return self.location.parent_span_id

    @property
    def trace_id(self) -> str:
        return self.location.trace_id

    @property
    def span_id(self) -> str:
        return self.current_span.span_id

    @property
    def traceparent(self) -> str:
        """The `traceparent` header of W3C Trace Context for `current_span`."""
        return self.current_span.traceparent

    @property
    def tracestate(self) -> str:
        """The `tracestate` header of W3C Trace Context, or ""."""
        return self.trace.tracestate_in(self.trace_id)


class CallUsage:
    """Measures of one call of a task's function. The executor sets the available ones before the call ends.

    Attributes:
        cpu_ns: CPU time of the thread or process that ran the function, in nanoseconds.
        threads: For a call in a worker thread of this process: the number of calls in threads of the executor. 0 otherwise.
        wall_ns: For a call in a worker thread: the duration of the function, in nanoseconds.
        ended_ns: For a call in a worker thread: its end, by `time.perf_counter_ns`.
    """

    cpu_ns: int | None = None
    threads = wall_ns = ended_ns = 0


class Execution(Protocol):
    """Execution of a task. `task` is created on first use, because most tasks do not use it."""

    @property
    def usage(self) -> CallUsage | None:
        """Takes the measures of the current call; None if nothing uses them."""
        ...

    @property
    def task(self) -> TaskContext: ...

    @property
    def held_slot(self) -> object | None:
        """The executor's slot that the task holds; None if it needs none."""
        ...

    def suspended(self) -> AbstractContextManager[None]:
        """Return a context manager to enter while the task waits for a run that it has started."""
        ...


CURRENT_TASK: ContextVar[Execution | None] = ContextVar("cascade_current_task", default=None)
"""The execution, or the `TaskContext`, whose code is running."""


def current_task() -> TaskContext | None:
    """Return the task whose code is running, in the event loop or in a worker thread; None outside of tasks."""
    execution = CURRENT_TASK.get()
    return None if execution is None else execution.task


def current_slot() -> object | None:
    """Return the executor's slot that the current task holds; None outside of tasks."""
    execution = CURRENT_TASK.get()
    return None if execution is None else execution.held_slot


def current_usage() -> CallUsage | None:
    """Return the object for the measures of the current call; None if nothing uses them, and outside of tasks."""
    execution = CURRENT_TASK.get()
    return None if execution is None else execution.usage


def context_copier() -> Callable[[], Context]:
    """Return a function that returns copies of the current context, in its present state.

    Copies share the values of context variables. Each copy gets its own context of `decimal`, which is mutable.
    """
    context = copy_context()
    decimal = sys.modules.get("decimal")
    shared = [(v, value) for v, value in context.items() if decimal is not None and isinstance(value, decimal.Context)]
    if not shared:
        return context.copy

    def copy() -> Context:
        new = context.copy()
        for variable, value in shared:
            new.run(variable.set, value.copy())
        return new

    return copy


async def in_context(context: Context, work: Coroutine[Any, Any, _T]) -> _T:
    """Await a coroutine in another context. It stays in the current asyncio task and can be cancelled as usual."""
    try:
        awaited = context.run(work.send, None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    return await rest_in_context(context, work, awaited)


@coroutine
def rest_in_context(context: Context, work: Coroutine[Any, Any, _T], awaited: Any) -> Generator[Any, Any, _T]:
    """Await the rest of a coroutine in its context. `awaited` is the result of its first step."""
    given: list[Any] = []  # emptied by each step: an error in this frame would make a reference cycle
    while True:
        step: Any = work.send
        try:
            given.append((yield awaited))
        except GeneratorExit:
            context.run(work.close)
            raise
        except BaseException as error:  # noqa: BLE001 - handed to the coroutine
            given.append(error)
            step = work.throw
        try:
            awaited = context.run(step, given.pop())
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
