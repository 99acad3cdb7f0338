"""A task's span as the current one, around its code."""

from contextvars import Token
from types import TracebackType

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span

from cascade.connectors.otel._below import with_task
from cascade.connectors.otel._live import LiveRun, SpanFactory, parent_context, span_context
from cascade.runtime.task_context import TaskContext


class NoActivation:
    """Nothing to activate: the run is not traced here."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class SpanActivation:
    """Starts the span of a task, and of its attempt, where they are not there yet; it ends with the task's message."""

    __slots__ = ("_detail", "_factory", "_run", "_task", "_token")

    def __init__(self, task: TaskContext, run: LiveRun, factory: SpanFactory, detail: str) -> None:
        self._task = task
        self._run = run
        self._factory = factory
        self._detail = detail
        self._token: Token[Context] | None = None

    def __enter__(self) -> None:
        context = trace.set_span_in_context(self._span(), otel_context.get_current())
        self._token = otel_context.attach(with_task(self._task, context))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._token is not None:
            otel_context.detach(self._token)

    def _span(self) -> Span:
        task, run = self._task, self._run
        if self._detail == "run":
            return run.root
        if not run.is_recording:
            current = task.current_span
            return NonRecordingSpan(span_context(current.trace_id, current.span_id, current.flags))
        span = self._live(task.name, task.span.span_id, task.parent_span_id, task.start_ns)
        if task.attempt and self._detail == "full":
            name, start_ns = f"{task.name} attempt", task.attempt_start_ns
            span = self._live(name, task.current_span.span_id, task.span.span_id, start_ns)
        return span

    def _live(self, name: str, span_id: str, parent_id: str, start_ns: int) -> Span:
        span = self._run.spans.get(span_id)
        if span is None:
            parent = parent_context(self._task.trace_id, parent_id, self._task.trace.flags)
            span = self._factory.start(name, self._task.trace_id, span_id, parent, start_ns)
            self._run.spans[span_id] = span
        return span
