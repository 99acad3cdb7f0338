"""Current span while the code of a task runs.

Most tasks do not use their span. It is then made from the terminal message of the task, at a fifth of the cost of a span of
the SDK. The first use creates a span of the SDK.
"""

from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, Span, SpanContext, Status, StatusCode
from opentelemetry.util.types import Attributes, AttributeValue

from cascade._internal_errors import raise_in_tests
from cascade.connectors.otel.live_spans import LiveRun, parent_context, span_context, with_baggage
from cascade.connectors.otel.sdk_hooks import TaskSpanMixin, content_bytes, task_in, with_task
from cascade.runtime.task_context import TaskContext
from cascade.telemetry.attributes import EXCEPTION_MESSAGE, EXCEPTION_STACKTRACE
from cascade.telemetry.identity import span_id
from cascade.telemetry.limits import MAX_ERROR_BYTES
from cascade.telemetry.sanitize import error_message, masked, masked_name, stack_text
from cascade.telemetry.trace_budget import SPAN_BYTES

if TYPE_CHECKING:
    from cascade.connectors.otel.metrics import RunMetrics


class TaskSpan(TaskSpanMixin, Span):
    """Proxy for the span of a task or of its attempt. Thread-safe, like the spans of the SDK.

    The span context is available without a span of the SDK. All other methods create one and delegate to it. After `finish`
    the span does not record.
    """

    def __init__(self, task: TaskContext, run: LiveRun, *, has_attempts: bool) -> None:
        self.task = task
        self._run = run
        self._attempt = task.attempt if has_attempts else 0
        self._context: SpanContext | None = None
        self._span: Span | None = None
        self._is_finished = False

    def get_span_context(self) -> SpanContext:
        if self._span is not None:  # its sampler may have decided differently from that of the run
            return self._span.get_span_context()
        if self._context is None:
            task = self.task
            own_id = span_id(task.run_id, task.task_id, self._attempt)
            self._context = span_context(task.trace.ref(task.trace_id, own_id))
        return self._context

    def is_recording(self) -> bool:
        return self._span.is_recording() if self._span is not None else not self._is_finished

    def finish(self) -> None:
        """Stop recording at the end of the code, and add the size of the span to the size of its trace.

        The span of the SDK ends with the message of the task. It is dropped if the trace has no room for its content.
        """
        with self._run.lock:
            self._is_finished = True
        child, span = self.task.child, self._span
        if child is None or not isinstance(span, ReadableSpan):
            return
        size = content_bytes(span)
        if size < SPAN_BYTES or child.has_room(size):
            child.charge(0, size)
        else:
            child.leave_out(size, self.task.trace.parts.run)
            self._run.drop(span_id(self.task.run_id, self.task.task_id, self._attempt))

    def sdk_span(self) -> Span:
        """Return the span of the SDK. It records nothing after `finish`, or if the SDK raises an exception."""
        failure: Exception | None = None
        with self._run.lock:
            if self._span is None:
                if self._is_finished:
                    return INVALID_SPAN
                try:
                    self._span = self._make()
                except Exception as error:  # noqa: BLE001 - code of the application
                    raise_in_tests(error)
                    self._span = NonRecordingSpan(self.get_span_context())
                    failure = error
            span = self._span
        if failure is not None:  # without the lock: a log handler may use the span
            self._run.report_failed_start(failure)
        return span

    def _make(self) -> Span:
        task, run = self.task, self._run
        trace_id, own_id = task.trace_id, span_id(task.run_id, task.task_id, self._attempt)
        name, parent_id, start_ns = masked_name(task.name), task.parent_span_id, task.start_ns
        if self._attempt:
            name, parent_id, start_ns = f"{name} attempt", task.span.span_id, task.attempt_start_ns
        parent = parent_context(task.trace.ref(trace_id, parent_id), run.inherited.context)
        span = run.spans[own_id] = run.tracer.start(name, trace_id, own_id, parent, start_ns)
        return span

    def end(self, end_time: int | None = None) -> None:
        self.sdk_span().end(end_time)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        self.sdk_span().set_attribute(key, value)

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        self.sdk_span().set_attributes(attributes)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        self.sdk_span().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Attributes = None) -> None:
        self.sdk_span().add_link(context, attributes)

    def update_name(self, name: str) -> None:
        self.sdk_span().update_name(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Set the status, with secrets masked in its description."""
        if isinstance(status, Status):
            description, status = status.description, status.status_code
        self.sdk_span().set_status(status, None if description is None else masked(description, MAX_ERROR_BYTES))

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Add the event of an exception, with secrets masked in its message and in its stack trace."""
        shown = {EXCEPTION_MESSAGE: error_message(exception), EXCEPTION_STACKTRACE: stack_text(exception)}
        self.sdk_span().record_exception(exception, {**shown, **(attributes or {})}, timestamp, escaped)

    def __getattr__(self, name: str) -> Any:
        """Return an attribute that only spans of the SDK have, such as `name`, `attributes` and `events`."""
        return getattr(self.sdk_span(), name)


class SpanActivation:
    """Makes the span of a task, of its attempt, or of a setup or teardown of a resource the current span.

    The setup and the teardown of a resource share a context: values that the setup attaches, such as baggage, stay attached.
    """

    __slots__ = ("_attached", "_before", "_detail", "_metrics", "_run", "_span", "_task", "_token")

    def __init__(self, task: TaskContext, run: LiveRun, metrics: "RunMetrics", detail: str) -> None:
        self._task = task
        self._run = run
        self._metrics = metrics
        self._detail = detail
        self._span: TaskSpan | None = None

    def __enter__(self) -> None:
        span = self._start()
        context = self._before = otel_context.get_current()
        if (inherited := self._run.inherited.baggage) and not baggage.get_all(context):
            context = with_baggage(inherited, context)
        context = trace.set_span_in_context(span, context)
        self._attached = context if span is self._span else with_task(self._task, context)
        self._token = otel_context.attach(self._attached)
        if self._task.kind == "task":
            self._metrics.start_task(self)  # last: `__exit__` is not called if this method raises

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._task.kind == "task":
            self._metrics.end_task(self)
        if self._span is not None:
            self._span.finish()
        if self._task.kind == "task" or (context := otel_context.get_current()) is self._attached:
            otel_context.detach(self._token)
            return
        context = with_task(task_in(self._before), context)
        otel_context.attach(trace.set_span_in_context(trace.get_current_span(self._before), context))

    def _start(self) -> Span:
        """Return the span of the task, or the span of the run if the detail excludes it."""
        task, run = self._task, self._run
        if self._detail == "run" or (self._detail == "tasks" and task.kind == "resource"):
            return run.root
        trace_id = task.trace_id
        if trace_id not in run.traces:
            run.add_trace(trace_id)
        if not run.root.is_recording():
            return NonRecordingSpan(span_context(task.current_span))
        self._span = TaskSpan(task, run, has_attempts=self._detail == "full")
        if not run.tracer.is_direct:  # span processors must be called at its start
            self._span.sdk_span()
        return self._span
