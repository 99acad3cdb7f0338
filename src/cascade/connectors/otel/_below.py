"""Spans below a task, such as those of instrumentation: they have the ids of run and task, and are sampled with the task."""

import weakref
from collections.abc import Sequence

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes, AttributeValue

from cascade.runtime.task_context import TaskContext
from cascade.telemetry import attributes as a


class OfTask:
    """A span that has a reference to its task."""

    __slots__ = ()

    task: TaskContext


_TASK = otel_context.create_key("cascade-task")
_marking: "weakref.WeakKeyDictionary[TracerProvider, TaskIds]" = weakref.WeakKeyDictionary()


def with_task(task: object, context: Context) -> Context:
    """The context, for code that belongs to `task`, below a span without a task; None for code of no task."""
    return context if task_in(context) is task else otel_context.set_value(_TASK, task, context)


def task_in(context: Context) -> object:
    """The task that `with_task` has set in a context, or None."""
    return otel_context.get_value(_TASK, context)


def mark_spans_of(provider: TracerProvider) -> None:
    """Add the ids of run and task to the provider's spans below tasks; once for each provider, from any thread."""
    marker = TaskIds()
    if _marking.setdefault(provider, marker) is marker:
        provider.add_span_processor(marker)


_OF_TASK = (a.RUN_ID, a.TASK_ID, a.MAP_INDEX)
"""The attributes of all spans below a task. With the index, one search in Jaeger finds the requests of one item that failed."""


def _ids_around(context: Context | None) -> dict[str, AttributeValue]:
    parent = trace.get_current_span(context)
    task = parent.task if isinstance(parent, OfTask) else otel_context.get_value(_TASK, context)
    if isinstance(task, TaskContext):
        if task.kind == "resource":
            return {a.RUN_ID: task.run_id}
        ids: dict[str, AttributeValue] = {a.RUN_ID: task.run_id, a.TASK_ID: task.task_id}
        if task.map_index is not None:
            ids[a.MAP_INDEX] = task.map_index
        return ids
    found = (parent.attributes if isinstance(parent, ReadableSpan) else None) or {}
    return {key: found[key] for key in _OF_TASK if key in found}


class TaskIds(SpanProcessor):
    """Marks each span with the ids of the run and the task in whose context it starts, and with the index of a map's item.

    A span below a resource gets the id of the run alone.
    """

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        ids = _ids_around(parent_context)
        if ids:
            span.set_attributes(ids)

    def on_end(self, span: ReadableSpan) -> None:
        pass

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - nothing is held
        return True


class BelowTasks(Sampler):
    """Samples a span below a task as the span above it, and others by the provider's own sampler.

    The process's provider may be that of an earlier run, with another sampler than the one of the task's run.
    """

    def __init__(self, original: Sampler) -> None:
        self._original = original

    def should_sample(
        self,
        parent_context: Context | None,
        trace_id: int,
        name: str,
        kind: SpanKind | None = None,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        trace_state: TraceState | None = None,
    ) -> SamplingResult:
        above = trace.get_current_span(parent_context).get_span_context()
        is_below = above.is_valid and not above.is_remote and _ids_around(parent_context)
        chosen = DEFAULT_ON if is_below else self._original
        return chosen.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return self._original.get_description()
