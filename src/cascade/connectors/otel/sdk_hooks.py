"""Spans below a task, such as those of instrumentation.

They have the ids of run and task, and are sampled with the task. They count for the size of the trace, which is split
before it is too large (`cascade.telemetry.parts`).
"""

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, DEFAULT_ON, Sampler, SamplingResult
from opentelemetry.trace import Link, SpanKind, TraceState
from opentelemetry.util.types import Attributes, AttributeValue

from cascade.connectors.otel.scope import is_ours
from cascade.runtime.task_context import TaskContext
from cascade.telemetry import attributes as a
from cascade.telemetry.safe import encoded_size
from cascade.telemetry.trace_budget import SPAN_BYTES


class PresetIds(IdGenerator):
    """Returns the ids of the running `preset` block, else those of the tracer's own generator."""

    def __init__(self, original: IdGenerator) -> None:
        self._original = original
        self._next = threading.local()

    @contextmanager
    def preset(self, trace_id: str, span_id: str) -> Iterator[None]:
        """Spans started in the block, in this thread, get these ids; below a parent the trace id is the parent's."""
        self._next.ids = int(trace_id, 16), int(span_id, 16)
        try:
            yield
        finally:
            self._next.ids = None

    def generate_trace_id(self) -> int:
        ids = self._preset
        return ids[0] if ids else self._original.generate_trace_id()

    def generate_span_id(self) -> int:
        ids = self._preset
        return ids[1] if ids else self._original.generate_span_id()

    def is_trace_id_random(self) -> bool:
        """False for a preset trace id: a caller may have chosen the run id (W3C Trace Context 2, random flag)."""
        return not self._preset and self._original.is_trace_id_random()

    @property
    def _preset(self) -> Any:
        return getattr(self._next, "ids", None)


_runs_of_parts: dict[int, int] = {}
"""The trace id of the run, by that of a part of the run."""


def add_part(trace_id: int, run_trace_id: int) -> None:
    """Sample the spans of a part by the trace id of its run, until `remove_part`."""
    _runs_of_parts[trace_id] = run_trace_id


def remove_part(trace_id: int) -> None:
    _runs_of_parts.pop(trace_id, None)


class PresetSampler(Sampler):
    """Lets the tracer's own sampler decide for a span as it does for the run.

    A sampler that follows parents finds none above the root of a part, and above the run's span in a replay. It gets a
    parent with the flags and the tracestate of the run there. A ratio sampler without regard to parents gets one trace id
    for all traces of a run.
    """

    def __init__(self, original: Sampler) -> None:
        self._original = original
        self._state = threading.local()

    @contextmanager
    def preset(self, parent: Context | None, trace_id: int | None) -> Iterator[None]:
        """Sample spans that are started in the block, in this thread, below that parent and by that trace id; None: their own."""
        self._state.parent, self._state.trace_id = parent, trace_id
        try:
            yield
        finally:
            self._state.parent = self._state.trace_id = None

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
        parent = getattr(self._state, "parent", None) or parent_context
        decisive = getattr(self._state, "trace_id", None) or _runs_of_parts.get(trace_id, trace_id)
        return self._original.should_sample(parent, decisive, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return self._original.get_description()


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


_OF_TASK = (a.RUN_ID, a.TASK_ID, a.MAP_INDEX, a.TASK_LABEL)
"""The attributes of all spans below a task. Index and label are the keys of a search for the requests of an item."""


def _task_around(context: Context | None) -> TaskContext | None:
    """The task or resource in whose context a span starts; for a span below another one, also that one's."""
    parent = trace.get_current_span(context)
    task = parent.task if isinstance(parent, OfTask) else otel_context.get_value(_TASK, context)
    if not isinstance(task, TaskContext):
        task = getattr(parent, _COUNTED, None) if isinstance(parent, ReadableSpan) else None
    return task


def _ids_around(context: Context | None) -> dict[str, AttributeValue]:
    return _ids_of(_task_around(context), context)


def _ids_of(task: TaskContext | None, context: Context | None) -> dict[str, AttributeValue]:
    if task is not None:
        if task.kind == "resource":
            return {a.RUN_ID: task.run_id}
        ids: dict[str, AttributeValue] = {a.RUN_ID: task.run_id, a.TASK_ID: task.task_id}
        if task.map_index is not None:
            ids[a.MAP_INDEX] = task.map_index
        if task.label is not None:
            ids[a.TASK_LABEL] = task.label
        return ids
    parent = trace.get_current_span(context)
    found = (parent.attributes if isinstance(parent, ReadableSpan) else None) or {}
    return {key: found[key] for key in _OF_TASK if key in found}


_COUNTED = "_cascade_task"
"""Attribute of the SDK's span objects below a task: the task whose trace they count for."""
_ATTRIBUTE_BYTES, _EVENT_BYTES, _LINK_BYTES = 12, 20, 40
_NUMBER_BYTES = 9


class TaskIds(SpanProcessor):
    """Sets the ids of run and task on each span that starts in a task's context, with the index and the label of an item.

    A span below a resource gets the id of the run alone.
    """

    def __init__(self) -> None:
        self._open: weakref.WeakValueDictionary[int, Span] = weakref.WeakValueDictionary()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        task = _task_around(parent_context)
        if ids := _ids_of(task, parent_context):
            span.set_attributes(ids)
        if task is not None and task.child is not None and not is_ours(span):
            setattr(span, _COUNTED, task)
            self._open[span.get_span_context().span_id] = span
            task.child.charge(1, _BARE_BYTES)

    def on_end(self, span: ReadableSpan) -> None:
        # The SDK gives a copy of the span here, without the attribute of the object.
        started = None if span.context is None else self._open.pop(span.context.span_id, None)
        task = getattr(started, _COUNTED, None)
        if task is not None:
            task.child.charge(0, content_bytes(span))

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - nothing is held
        return True


_BARE_BYTES = 90  # ids, times, kind and flags


def content_bytes(span: ReadableSpan) -> int:
    """Bytes of a span's name, attributes, events, links and status, encoded; estimated."""
    size = len(span.name) + _attribute_bytes(span.attributes) + encoded_size(span.status.description or "")
    for event in span.events:
        size += _EVENT_BYTES + len(event.name) + _attribute_bytes(event.attributes)
    for link in span.links:
        size += _LINK_BYTES + _attribute_bytes(link.attributes)
    return size


def _attribute_bytes(attributes: Mapping[str, Any] | None) -> int:
    return sum(_ATTRIBUTE_BYTES + encoded_size(key) + _value_bytes(value) for key, value in (attributes or {}).items())


def _value_bytes(value: Any) -> int:
    if isinstance(value, str):
        return encoded_size(value)
    if isinstance(value, (tuple, list)):
        return sum(_value_bytes(item) + 4 for item in value)
    if isinstance(value, Mapping):
        return _attribute_bytes(value)
    return len(value) if isinstance(value, bytes) else _NUMBER_BYTES


_OWN = otel_context.create_key("cascade-own-span")


def for_own_span(context: Context) -> Context:
    """The parent's context for a span of Cascade itself, which a full trace does not leave out."""
    return otel_context.set_value(_OWN, True, context)


class BelowTasks(Sampler):
    """Samples a span below a task as the span above it, and others by the provider's own sampler.

    The process's provider may be that of an earlier run, with another sampler than the one of the task's run. A sampler
    that `is_plain` is not called for spans below tasks. A span of the program is dropped if its trace has no room.
    """

    def __init__(self, original: Sampler, *, is_plain: bool) -> None:
        self._original = original
        self._is_plain = is_plain

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
        is_below = above.is_valid and not above.is_remote
        if is_below and above.trace_flags.sampled and not _has_room(parent_context, name, attributes):
            return ALWAYS_OFF.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)
        chosen = DEFAULT_ON if self._is_plain and is_below and _ids_around(parent_context) else self._original
        return chosen.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return self._original.get_description()


def _has_room(context: Context | None, name: str, attributes: Attributes) -> bool:
    """Whether the trace has room for a span; one without room is counted."""
    task = _task_around(context)
    if task is None or task.child is None or otel_context.get_value(_OWN, context) is not None:
        return True
    size = SPAN_BYTES + len(name) + _attribute_bytes(attributes)
    if task.child.has_room(size):
        return True
    task.child.leave_out(size, task.trace.parts.run)
    return False
