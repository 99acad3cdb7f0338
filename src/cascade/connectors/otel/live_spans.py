"""Span objects of runs in progress, and the context that a run inherits from its caller."""

import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from opentelemetry import baggage, trace
from opentelemetry import context as otel_context
from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
)

from cascade._internal_errors import raise_in_tests
from cascade._loggers import get_logger
from cascade.connectors.otel.environment import SettingWarning, warn_once
from cascade.connectors.otel.provider import RunTracer
from cascade.connectors.otel.routing import ExportTarget, RunTargets, add_target, remove_target, run_targets
from cascade.connectors.otel.sdk_hooks import add_part, remove_part, with_task
from cascade.telemetry import attributes as a
from cascade.telemetry import identity
from cascade.telemetry.identity import RunTrace, SpanRef, span_id
from cascade.telemetry.span_data import SpanData

logger = get_logger("cascade.connectors.otel")


@dataclass(frozen=True, slots=True)
class InheritedContext:
    """OpenTelemetry context of the caller of a run.

    `context` has the baggage and the other values of the caller, without its span and task. It is the parent context of
    the spans of the run for samplers and span processors. `span` is the current span of the caller, or None. `baggage` is
    BAGGAGE of the environment, which is used if the caller has neither a span nor baggage.
    """

    context: Context = field(default_factory=Context)
    span: SpanRef | None = None
    is_remote: bool = True
    baggage: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_caller(cls, environ: Mapping[str, str] = os.environ) -> "InheritedContext":
        """Return the context of the calling code."""
        caller = otel_context.get_current()
        current = trace.get_current_span(caller).get_span_context()
        entries = {} if current.is_valid or baggage.get_all(caller) else _baggage_in(environ)
        context = trace.set_span_in_context(trace.INVALID_SPAN, with_baggage(entries, with_task(None, caller)))
        if not current.is_valid:
            return cls(context, baggage=entries)
        state, flags = current.trace_state.to_header(), int(current.trace_flags)
        span = SpanRef(f"{current.trace_id:032x}", f"{current.span_id:016x}", flags, state)
        return cls(context, span, current.is_remote, entries)


def with_baggage(entries: Mapping[str, object], context: Context) -> Context:
    """Return the context with additional baggage."""
    for name, value in entries.items():
        context = baggage.set_baggage(name, value, context)
    return context


def _baggage_in(environ: Mapping[str, str]) -> Mapping[str, object]:
    """Read BAGGAGE with the propagator of the process, which ignores malformed entries."""
    if not environ.get("BAGGAGE"):
        return {}
    try:
        from opentelemetry import propagate  # raises for a propagator in OTEL_PROPAGATORS that is not installed

        return baggage.get_all(propagate.extract({"baggage": environ["BAGGAGE"]}, Context()))
    except Exception as error:  # noqa: BLE001 - code of another package
        raise_in_tests(error)
        warn_once(SettingWarning("BAGGAGE", environ["BAGGAGE"], f"BAGGAGE of the environment is ignored: {error}"))
        return {}


@dataclass(slots=True, eq=False)
class LiveRun:
    """State of the spans of one run in progress.

    `root` is the span of the run. `spans` has the spans of tasks and attempts that user code has used, by id. `ended` has
    the ids of attempts whose spans are exported before the last message of their task. `inherited` is the context of the
    caller. `target` is None if the processors of the provider export. `traces` has the ids of the traces of the run.
    """

    trace: RunTrace
    root: Span
    tracer: RunTracer
    target: ExportTarget | None = None
    inherited: InheritedContext = field(default_factory=InheritedContext)
    spans: dict[str, Span] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    root_id: str = field(init=False)
    traces: set[str] = field(default_factory=set)
    _has_reported_failure: bool = False
    _targets: RunTargets | None = None

    def __post_init__(self) -> None:
        self.root_id = self.trace.span_id
        if self.target is not None:
            self._targets = run_targets(self.trace.run_id, self.target)

    def add_trace(self, trace_id: str) -> None:
        """Add the trace of the run or of a part. Its spans are exported and sampled like the span of the run."""
        self.traces.add(trace_id)
        if trace_id != self.trace.trace_id:
            add_part(int(trace_id, 16), int(self.trace.trace_id, 16))
        if self.target is not None:
            add_target(int(trace_id, 16), self.target)

    def remove_traces(self) -> None:
        while self.traces:
            trace_id = int(self.traces.pop(), 16)
            remove_part(trace_id)
            if self.target is not None:
                remove_target(trace_id, self.target)

    def report_failed_start(self, error: Exception) -> None:
        """Log the first error of the tracer provider in this run."""
        if not self._has_reported_failure:
            self._has_reported_failure = True
            message = "OtelConnector: a span could not be started; further failures in this run are not logged"
            logger.error(message, exc_info=error)

    def drop_omitted(self, payload: Mapping[str, Any]) -> None:
        """Drop the span of a failed attempt that the message omits because its trace is full."""
        body = payload["body"]
        if body["metadata"].get("reason") == "retry" and "span_id" not in body["metadata"]:
            self.spans.pop(span_id(payload["run_id"], body["task_id"], body["metadata"]["attempt"]), None)

    def drop(self, span_id: str) -> None:
        """Drop the span of a task whose trace has no room for its content. The span is then made from the message alone."""
        with self.lock:
            self.spans.pop(span_id, None)

    def end_unfinished(self) -> None:
        """End the spans whose last message was lost, with an error status."""
        with self.lock:
            spans, self.spans = [*self.spans.values(), self.root], {}
        for span in spans:
            if span.is_recording():
                span.set_attribute(a.RUN_RESULT if span is self.root else a.TASK_RESULT, "cancellation")
                span.set_status(Status(StatusCode.ERROR, "its last message was lost"))
                try:
                    span.end()
                except Exception as error:
                    raise_in_tests(error)
                    logger.debug("OtelConnector: a span processor has raised an error", exc_info=True)


def emit_finished(tracer: RunTracer, data: SpanData, run: LiveRun | None) -> None:
    """Start and end a span of the SDK. In a replay, which has no `run`, a span that was not sampled is dropped."""
    if run is None and not data.flags & TraceFlags.SAMPLED:
        return
    base = run.inherited.context if run is not None else None
    own = SpanRef(data.trace_id, data.span_id, data.flags, data.tracestate)
    parent = parent_context(replace(own, span_id=data.parent_id), base)
    kind = SpanKind.SERVER if data.is_run else SpanKind.INTERNAL
    sampled_parent = None if data.parent_id else parent_context(own, base)
    run_trace_id = None
    if run is None:
        run_trace_id = int(identity.trace_id(str(data.attributes.get(a.RUN_ID, data.trace_id))), 16)
    with tracer.sampler.preset(sampled_parent, run_trace_id):
        span = tracer.start(data.name, data.trace_id, data.span_id, parent, data.start_ns, kind=kind)
    complete(span, data)


def complete(span: Span, data: SpanData, *, linked: int = 0) -> None:
    """Add the data of a message to a live span, which user code may have modified, and end the span.

    The span already has the first `linked` links: the sampler got them at its start.
    """
    if not span.is_recording():
        return
    span.set_attributes(data.attributes)
    for link in data.links[linked:]:
        ref = SpanRef(link.trace_id, link.span_id, data.flags, link.tracestate)
        span.add_link(span_context(ref), link.attributes)
    for event in data.events:
        span.add_event(event.name, event.attributes, event.time_ns)
    if data.error is not None:
        span.set_status(Status(StatusCode.ERROR, data.error))
    span.end(data.end_ns)


def span_context(span: SpanRef, *, is_remote: bool = False) -> SpanContext:
    state = _trace_state(span.tracestate) if span.tracestate else None
    return SpanContext(int(span.trace_id, 16), int(span.span_id, 16), is_remote, TraceFlags(span.flags), state)


@lru_cache(maxsize=256)
def _trace_state(tracestate: str) -> TraceState:
    return TraceState.from_header([tracestate])


def parent_context(parent: SpanRef, base: Context | None = None, *, is_remote: bool = False) -> Context:
    """Return the context `base` with `parent` as the current span, unless `parent` has no span id."""
    base = Context() if base is None else base
    if not parent.span_id:
        return base
    return trace.set_span_in_context(NonRecordingSpan(span_context(parent, is_remote=is_remote)), base)


def parent_of_run(current: SpanRef | None, task: SpanRef | None) -> SpanRef | None:
    """Return the parent of a run: the current span, else the span of the task that starts the run.

    A current span that is not sampled is ignored if it is in the trace of a sampled task.
    """
    if current is None or task is None:
        return current or task
    is_dropped = current.trace_id == task.trace_id and task.flags & ~current.flags & TraceFlags.SAMPLED
    return task if is_dropped else current
