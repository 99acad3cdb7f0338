"""A task's span as the current one, around its code."""

from types import TracebackType
from typing import TYPE_CHECKING

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.trace import NonRecordingSpan, Span

from cascade.connectors.otel._below import task_in, with_task
from cascade.connectors.otel._inherited import with_baggage
from cascade.connectors.otel._live import LiveRun, span_context
from cascade.connectors.otel._task_span import TaskSpan
from cascade.runtime.task_context import TaskContext

if TYPE_CHECKING:
    from cascade.connectors.otel.metrics import RunMetrics


class NoActivation:
    """Nothing to activate: the run is not traced here."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class SpanActivation:
    """Makes the span of a task, of its attempt, or of a resource's setup or teardown the current one.

    The span ends with the message of its end. A resource's setup and teardown share their context: what the setup has
    attached, such as baggage, stays attached.
    """

    __slots__ = ("_attached", "_before", "_detail", "_metrics", "_run", "_span", "_task", "_token")

    def __init__(self, task: TaskContext, run: LiveRun, metrics: "RunMetrics", detail: str) -> None:
        self._task = task
        self._run = run
        self._metrics = metrics
        self._detail = detail
        self._span: TaskSpan | None = None

    def __enter__(self) -> None:
        span = self._current()
        context = self._before = otel_context.get_current()
        if (inherited := self._run.inherited.baggage) and not baggage.get_all(context):
            context = with_baggage(inherited, context)
        context = trace.set_span_in_context(span, context)
        self._attached = context if span is self._span else with_task(self._task, context)
        self._token = otel_context.attach(self._attached)
        if self._task.kind == "task":
            self._metrics.entered()  # last: `__exit__` is not called if this method raises

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._task.kind == "task":
            self._metrics.left()
        if self._span is not None:
            self._span.over()
        if self._task.kind == "task" or (context := otel_context.get_current()) is self._attached:
            otel_context.detach(self._token)
            return
        context = with_task(task_in(self._before), context)
        otel_context.attach(trace.set_span_in_context(trace.get_current_span(self._before), context))

    def _current(self) -> Span:
        task, run = self._task, self._run
        if self._detail == "run" or (self._detail == "tasks" and task.kind == "resource"):
            return run.root
        run.stands_in(task.trace_id)
        if not run.is_recording:
            return NonRecordingSpan(span_context(task.current_span))
        self._span = TaskSpan(task, run, has_attempts=self._detail == "full")
        if not run.factory.is_direct:
            self._span.real()
        return self._span
