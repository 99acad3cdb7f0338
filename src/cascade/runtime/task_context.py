"""Which task the running code belongs to."""

import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import AbstractContextManager, nullcontext
from contextvars import Context, ContextVar, Token, copy_context
from dataclasses import dataclass, field
from types import coroutine
from typing import Any, Protocol, TypeVar

from cascade.telemetry.identity import Place, RunTrace, SpanRef, span_id
from cascade.telemetry.trace_budget import Child

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class TaskContext:
    """The running task's identity. An executor that runs tasks elsewhere carries `traceparent` and `tracestate`.

    `kind` is "task", or "resource" for the setup or the teardown of a resource. `attempt` is 0 without a retry policy,
    else 1, 2, …. `start_ns` is the task's first RUNNING, `attempt_start_ns` that of this attempt, in nanoseconds since the
    Unix epoch. `child` has the part of the task in a trace that may be split, and counts the spans below the task. `label` is
    the label of the call, or None.
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

    @property
    def task(self) -> "TaskContext":
        return self

    @property
    def held_place(self) -> None:
        """None: a task that runs elsewhere has no place here."""
        return

    def suspended(self) -> AbstractContextManager[None]:
        """Return a context manager without effect: a task that runs elsewhere has no permit here."""
        return nullcontext()

    @property
    def place(self) -> Place:
        """In which trace the task's span stands, and below which span."""
        if self.child is None:
            return self.trace.place_of(self.task_id, self.map_id)
        return self.trace.place_in(self.child.part)

    @property
    def span(self) -> SpanRef:
        """The task's own span."""
        return self.trace.ref(self.trace_id, span_id(self.run_id, self.task_id))

    @property
    def current_span(self) -> SpanRef:
        """The span below which the user's code stands: the attempt's with a retry policy, else the task's."""
        return self.trace.ref(self.trace_id, span_id(self.run_id, self.task_id, self.attempt))

    @property
    def parent_span_id(self) -> str:
        """The parent of the task's span: the map's for an item, else the run's, or the root of their part."""
        return self.place.parent_span_id

    @property
    def trace_id(self) -> str:
        return self.place.trace_id

    @property
    def span_id(self) -> str:
        return self.current_span.span_id

    @property
    def traceparent(self) -> str:
        """`current_span` as W3C Trace Context's header."""
        return self.current_span.traceparent

    @property
    def tracestate(self) -> str:
        """The header that belongs beside `traceparent`; "" without one."""
        return self.trace.tracestate_in(self.trace_id)


class HasTask(Protocol):
    """Work that can say which task it is: most tasks never ask, so it is not made before they do."""

    @property
    def task(self) -> TaskContext: ...

    @property
    def held_place(self) -> object | None:
        """The executor's place that the work holds; None if it needs none."""
        ...

    def suspended(self) -> AbstractContextManager[None]:
        """Entered while the task only waits for a run that it has started, which may need its place."""
        ...


_current: ContextVar[HasTask | None] = ContextVar("cascade_current_task", default=None)


def current_task() -> TaskContext | None:
    """The task whose code is running, in the event loop or in a worker thread; None outside of tasks."""
    work = _current.get()
    return None if work is None else work.task


def current_work() -> HasTask | None:
    """What was given to `enter`."""
    return _current.get()


def current_place() -> object | None:
    """The executor's place that the current task holds; None outside of tasks."""
    work = _current.get()
    return None if work is None else work.held_place


def enter(work: HasTask) -> Token[HasTask | None]:
    """Make it the current task until `leave`; a `TaskContext` itself will do."""
    return _current.set(work)


def leave(token: Token[HasTask | None]) -> None:
    _current.reset(token)


def context_copier() -> Callable[[], Context]:
    """Return a function that copies the current context as it is now.

    The value of a context variable is shared between copies. `decimal` keeps a mutable object there, with the precision
    and the flags: each copy has its own.
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


@coroutine
def in_context(context: Context, work: Coroutine[Any, Any, _T]) -> Generator[Any, Any, _T]:
    """Await `work` in another context. The current asyncio task stays the same, so cancellation works as without it."""
    step: Any = work.send
    given: list[Any] = [None]  # emptied by each step: an error that stays in this frame would be part of a cycle
    while True:
        try:
            awaited = context.run(step, given.pop())
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
        try:
            given.append((yield awaited))
            step = work.send
        except GeneratorExit:
            context.run(work.close)
            raise
        except BaseException as error:  # noqa: BLE001 - handed to the coroutine
            given.append(error)
            step = work.throw
