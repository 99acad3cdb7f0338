"""Id generator, samplers and a span processor for tracers of the SDK.

They preset the ids of Cascade's spans. A span that the code of a task starts, for example one of instrumentation, gets the
ids of the run and the task, is sampled like the task, and counts towards the size of its trace, which is limited
(`cascade.telemetry.trace_shards`).
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

from cascade.connectors.otel.encode import SCOPE
from cascade.runtime.task_context import TaskContext
from cascade.telemetry import attributes as a
from cascade.telemetry.limits import utf8_size
from cascade.telemetry.trace_budget import SPAN_BYTES

# Estimated bytes of the encoding.
_BARE_BYTES = 90  # ids, times, kind and flags of a span
_ATTRIBUTE_BYTES, _EVENT_BYTES, _LINK_BYTES = 12, 20, 40
_NUMBER_BYTES = 9

_TASK_KEY = otel_context.create_key("cascade-task")
_OWN_SPAN_KEY = otel_context.create_key("cascade-own-span")
_COUNTED_TASK = "_cascade_task"
"""Attribute of span objects of the SDK below a task. Its value is that task, whose trace the span counts for."""

_TASK_ATTRIBUTES = (a.RUN_ID, a.TASK_ID, a.MAP_INDEX, a.TASK_LABEL)
"""Attributes of all spans below a task. The index and the label find the spans of one item of a map."""


class PresetIds(IdGenerator):
    """Generates the ids of the active `preset` block, and otherwise those of the original generator.

    The API has no argument for the id of a span (opentelemetry-python issue 4963).
    """

    def __init__(self, original: IdGenerator) -> None:
        self._original = original
        self._local = threading.local()

    @contextmanager
    def preset(self, trace_id: str, span_id: str) -> Iterator[None]:
        """Set the ids of root spans that the current thread starts in the block, and the span ids of child spans."""
        self._local.ids = int(trace_id, 16), int(span_id, 16)
        try:
            yield
        finally:
            self._local.ids = None

    def generate_trace_id(self) -> int:
        ids = self._preset
        return ids[0] if ids else self._original.generate_trace_id()

    def generate_span_id(self) -> int:
        ids = self._preset
        return ids[1] if ids else self._original.generate_span_id()

    def is_trace_id_random(self) -> bool:
        """Return False for a preset trace id. A caller may have chosen the run id (W3C Trace Context 2, random flag)."""
        return not self._preset and self._original.is_trace_id_random()

    @property
    def _preset(self) -> Any:
        return getattr(self._local, "ids", None)


_runs_of_parts: dict[int, int] = {}
"""Trace ids of runs by the trace ids of their parts."""


def add_part(trace_id: int, run_trace_id: int) -> None:
    """Sample the spans of a part by the trace id of its run, until `remove_part`."""
    _runs_of_parts[trace_id] = run_trace_id


def remove_part(trace_id: int) -> None:
    _runs_of_parts.pop(trace_id, None)


class PresetSampler(Sampler):
    """Samples every span of a run with the decision for the run.

    The root span of a part has no parent. In a replay, the span of the run has none either. A parent-based sampler gets a
    parent with the flags and the tracestate of the run. A ratio sampler gets one trace id for all traces of a run.
    """

    def __init__(self, original: Sampler) -> None:
        self._original = original
        self._local = threading.local()

    @contextmanager
    def preset(self, parent: Context | None, trace_id: int | None) -> Iterator[None]:
        """Set the parent and the trace id for the sampling of spans that the current thread starts in the block."""
        self._local.parent, self._local.trace_id = parent, trace_id
        try:
            yield
        finally:
            self._local.parent = self._local.trace_id = None

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
        parent = getattr(self._local, "parent", None) or parent_context
        trace_id = getattr(self._local, "trace_id", None) or _runs_of_parts.get(trace_id, trace_id)
        return self._original.should_sample(parent, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return self._original.get_description()


def is_cascade_span(span: ReadableSpan) -> bool:
    """Return whether Cascade has created the span, and not the code of the user or its instrumentation."""
    return span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE


class TaskSpanMixin:
    """A span with a reference to its task."""

    __slots__ = ()

    task: TaskContext


def with_task(task: object, context: Context) -> Context:
    """Return the context with a task, for spans below a span that is not a `TaskSpanMixin`. None removes the task."""
    return context if task_in(context) is task else otel_context.set_value(_TASK_KEY, task, context)


def task_in(context: Context) -> object:
    """Return the task that `with_task` has set, or None."""
    return otel_context.get_value(_TASK_KEY, context)


def _task_of(context: Context | None) -> TaskContext | None:
    """Return the task or resource that a span belongs to if it starts in a context."""
    parent = trace.get_current_span(context)
    task = parent.task if isinstance(parent, TaskSpanMixin) else otel_context.get_value(_TASK_KEY, context)
    if not isinstance(task, TaskContext):
        task = getattr(parent, _COUNTED_TASK, None) if isinstance(parent, ReadableSpan) else None
    return task


def _ids_of(task: TaskContext | None, context: Context | None) -> dict[str, AttributeValue]:
    if task is None:
        parent = trace.get_current_span(context)
        found = (parent.attributes if isinstance(parent, ReadableSpan) else None) or {}
        return {key: found[key] for key in _TASK_ATTRIBUTES if key in found}
    ids: dict[str, AttributeValue] = {a.RUN_ID: task.run_id}
    if task.kind != "resource":
        ids[a.TASK_ID] = task.task_id
        if task.map_index is not None:
            ids[a.MAP_INDEX] = task.map_index
        if task.label is not None:
            ids[a.TASK_LABEL] = task.label
    return ids


class TaskIdProcessor(SpanProcessor):
    """Sets the ids of the run and the task on each span that starts in the context of a task, and counts its size."""

    def __init__(self) -> None:
        self._open: weakref.WeakValueDictionary[int, Span] = weakref.WeakValueDictionary()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        task = _task_of(parent_context)
        if ids := _ids_of(task, parent_context):
            span.set_attributes(ids)
        if task is not None and task.child is not None and not is_cascade_span(span):
            setattr(span, _COUNTED_TASK, task)
            self._open[span.get_span_context().span_id] = span
            task.child.charge(1, _BARE_BYTES)

    def on_end(self, span: ReadableSpan) -> None:
        # The SDK passes a copy of the span, which does not have `_COUNTED_TASK`.
        started = None if span.context is None else self._open.pop(span.context.span_id, None)
        task = getattr(started, _COUNTED_TASK, None)
        if task is not None:
            task.child.charge(0, content_bytes(span))

    def shutdown(self) -> None:
        pass

    def force_flush(self, timeout_millis: int = 30_000) -> bool:  # noqa: ARG002 - there is nothing to flush
        return True


_processors: "weakref.WeakKeyDictionary[TracerProvider, TaskIdProcessor]" = weakref.WeakKeyDictionary()


def add_task_ids_to(provider: TracerProvider) -> None:
    """Add a `TaskIdProcessor` to a provider that has none yet. Thread-safe."""
    processor = TaskIdProcessor()
    if _processors.setdefault(provider, processor) is processor:
        provider.add_span_processor(processor)


def content_bytes(span: ReadableSpan) -> int:
    """Return the estimated size of the encoded name, attributes, events, links and status of a span."""
    size = len(span.name) + _attribute_bytes(span.attributes) + utf8_size(span.status.description or "")
    for event in span.events:
        size += _EVENT_BYTES + len(event.name) + _attribute_bytes(event.attributes)
    for link in span.links:
        size += _LINK_BYTES + _attribute_bytes(link.attributes)
    return size


def _attribute_bytes(attributes: Mapping[str, Any] | None) -> int:
    return sum(_ATTRIBUTE_BYTES + utf8_size(key) + _value_bytes(value) for key, value in (attributes or {}).items())


def _value_bytes(value: Any) -> int:
    if isinstance(value, str):
        return utf8_size(value)
    if isinstance(value, (tuple, list)):
        return sum(_value_bytes(item) + 4 for item in value)
    if isinstance(value, Mapping):
        return _attribute_bytes(value)
    return len(value) if isinstance(value, bytes) else _NUMBER_BYTES


def for_own_span(context: Context) -> Context:
    """Return the parent context for a span of Cascade, which is sampled even if the trace has no room."""
    return otel_context.set_value(_OWN_SPAN_KEY, True, context)


class TaskChildSampler(Sampler):
    """Samples a span below a task like its parent, and all other spans with the original sampler.

    The global provider may belong to an earlier run whose sampler differs from that of the task's run. An original sampler
    that is not `is_plain` is called for spans below tasks too. A span is dropped if its trace has no room.
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
        parent = trace.get_current_span(parent_context).get_span_context()
        is_child = parent.is_valid and not parent.is_remote
        chosen = self._original
        if is_child and parent.trace_flags.sampled and not _has_room(parent_context, name, attributes):
            chosen = ALWAYS_OFF
        elif self._is_plain and is_child and _ids_of(_task_of(parent_context), parent_context):
            chosen = DEFAULT_ON
        return chosen.should_sample(parent_context, trace_id, name, kind, attributes, links, trace_state)

    def get_description(self) -> str:
        return self._original.get_description()


def _has_room(context: Context | None, name: str, attributes: Attributes) -> bool:
    """Return whether the trace has room for a span. A span without room is counted."""
    task = _task_of(context)
    if task is None or task.child is None or otel_context.get_value(_OWN_SPAN_KEY, context) is not None:
        return True
    size = SPAN_BYTES + len(name) + _attribute_bytes(attributes)
    if task.child.has_room(size):
        return True
    task.child.leave_out(size, task.trace.parts.run)
    return False
