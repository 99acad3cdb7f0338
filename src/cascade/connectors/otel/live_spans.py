"""The spans of running runs."""

import os
import threading
from collections.abc import Iterator, Mapping
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

from cascade._loggers import get_logger
from cascade.connectors.otel.encode import encode_span
from cascade.connectors.otel.environment import SettingWarning, warn_once
from cascade.connectors.otel.provider import Tracing
from cascade.connectors.otel.routing import ExportTarget, RunTargets, add_target, remove_target, run_targets
from cascade.connectors.otel.sdk_hooks import add_part, for_own_span, remove_part, with_task
from cascade.connectors.otel.span_data import SpanData
from cascade.telemetry import attributes as a
from cascade.telemetry import identity
from cascade.telemetry.identity import RunTrace, SpanRef, span_id


@dataclass(frozen=True, slots=True)
class Inherited:
    """OpenTelemetry context of a run's caller.

    `context` has the caller's baggage and other values; no span is current in it, and no task. Samplers and span
    processors get it with the spans of the run. `span` is the caller's current span, or None. `baggage` comes from
    BAGGAGE of the environment, which is used if the caller has neither a span nor baggage.
    """

    context: Context = field(default_factory=Context)
    span: SpanRef | None = None
    is_remote: bool = True
    baggage: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def from_caller(cls, environ: Mapping[str, str] = os.environ) -> "Inherited":
        """The context of the code that calls this."""
        caller = otel_context.get_current()
        current = trace.get_current_span(caller).get_span_context()
        found = {} if current.is_valid or baggage.get_all(caller) else _baggage_in(environ)
        context = trace.set_span_in_context(trace.INVALID_SPAN, with_baggage(found, with_task(None, caller)))
        if not current.is_valid:
            return cls(context, baggage=found)
        state, flags = current.trace_state.to_header(), int(current.trace_flags)
        span = SpanRef(f"{current.trace_id:032x}", f"{current.span_id:016x}", flags, state)
        return cls(context, span, current.is_remote, found)


def with_baggage(entries: Mapping[str, object], context: Context) -> Context:
    """The context with these entries of baggage in addition to its own."""
    for name, value in entries.items():
        context = baggage.set_baggage(name, value, context)
    return context


def _baggage_in(environ: Mapping[str, str]) -> Mapping[str, object]:
    """The entries of BAGGAGE, as the process's propagator reads them; it leaves out malformed ones."""
    if not environ.get("BAGGAGE"):
        return {}
    try:
        from opentelemetry import propagate  # raises if OTEL_PROPAGATORS names one that is not installed

        return baggage.get_all(propagate.extract({"baggage": environ["BAGGAGE"]}, Context()))
    except Exception as error:  # noqa: BLE001 - code of another package
        warn_once(SettingWarning("BAGGAGE", environ["BAGGAGE"], f"BAGGAGE of the environment is ignored: {error}"))
        return {}


logger = get_logger("cascade.connectors.otel")


class SpanFactory:
    """Starts and ends spans under preset ids."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    def start(
        self,
        name: str,
        trace_id: str,
        span_id: str,
        parent: Context,
        start_ns: int,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        links: tuple[trace.Link, ...] = (),
    ) -> Span:
        with self._tracing.ids.preset(trace_id, span_id):
            return self._tracing.tracer.start_span(
                name,
                for_own_span(parent),
                kind,
                links=links,
                start_time=start_ns,
                record_exception=False,
                set_status_on_exception=False,
            )

    @property
    def is_direct(self) -> bool:
        """Whether a finished span may go to its target without a span object of the SDK."""
        return self._tracing.is_direct

    def finished(self, data: SpanData, run: "LiveRun | None" = None) -> None:
        """Export a span that has ended already, on the run's target, else on the provider's.

        Without a run (a replay) a span of a run that was not sampled is dropped.
        """
        target = (run.target if run is not None else None) or self._tracing.target
        if target is not None and self.is_direct:
            if data.flags & TraceFlags.SAMPLED:
                target.put(encode_span(data), urgent=data.is_marker, important=data.has_children)
            return
        if run is None and not data.flags & TraceFlags.SAMPLED:
            return
        base = run.inherited.context if run is not None else None
        own = SpanRef(data.trace_id, data.span_id, data.flags, data.tracestate)
        parent = parent_context(replace(own, span_id=data.parent_id), base)
        kind = SpanKind.SERVER if data.is_server else SpanKind.INTERNAL
        above = None if data.parent_id else parent_context(own, base)
        decisive = (
            None if run is not None else int(identity.trace_id(str(data.attributes.get(a.RUN_ID, data.trace_id))), 16)
        )
        with self._tracing.sampler.preset(above, decisive):
            span = self.start(data.name, data.trace_id, data.span_id, parent, data.start_ns, kind=kind)
        complete(span, data)


@dataclass(slots=True, eq=False)
class LiveRun:
    """One run: its root span, and the tasks' and attempts' spans that user code has touched, by id.

    `ended` has the ids of attempts whose spans are exported before their last message. `inherited` is the context of the
    run's caller. `target` is None where the provider's own processors export.
    """

    trace: RunTrace
    root: Span
    factory: SpanFactory
    target: ExportTarget | None = None
    inherited: Inherited = field(default_factory=Inherited)
    spans: dict[str, Span] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)
    root_id: str = field(init=False)
    _traces: set[str] = field(default_factory=set)
    _has_failed: bool = False
    _routes: RunTargets | None = None

    def __post_init__(self) -> None:
        self.root_id = self.trace.span_id
        if self.target is not None:
            self._routes = run_targets(self.trace.run_id, self.target)

    @property
    def is_recording(self) -> bool:
        return self.root.is_recording()

    def stands_in(self, trace_id: str) -> None:
        """ExportTarget and sample the spans of that trace, the run's own or that of a part, as the run's."""
        if trace_id in self._traces:
            return
        self._traces.add(trace_id)
        if trace_id != self.trace.trace_id:
            add_part(int(trace_id, 16), int(self.trace.trace_id, 16))
        if self.target is not None:
            add_target(int(trace_id, 16), self.target)

    def report_failed_start(self, error: Exception) -> None:
        """Log the error of the tracer provider, which could not start a span, if it is the first one of the run."""
        if not self._has_failed:
            self._has_failed = True
            message = "OtelConnector: a span could not be started; further failures in this run are not logged"
            logger.error(message, exc_info=error)

    def forget_omitted(self, payload: Mapping[str, Any]) -> None:
        """Forget the span of a failed attempt which the message has left out, because its trace is full."""
        body = payload["body"]
        if body["metadata"].get("reason") == "retry" and "span_id" not in body["metadata"]:
            self.spans.pop(span_id(payload["run_id"], body["task_id"], body["metadata"]["attempt"]), None)

    def forget(self, span_id: str) -> None:
        """Forget a task's span whose content has no room in its trace. The message alone makes the span."""
        with self.lock:
            self.spans.pop(span_id, None)

    def leave(self) -> None:
        """End the routing and sampling that `stands_in` has begun."""
        while self._traces:
            trace_id = int(self._traces.pop(), 16)
            remove_part(trace_id)
            if self.target is not None:
                remove_target(trace_id, self.target)

    def leftovers(self) -> Iterator[Span]:
        """Remove and return the spans whose terminal message is missing."""
        with self.lock:
            spans, self.spans = list(self.spans.values()), {}
        yield from spans


def complete(span: Span, data: SpanData, *, linked: int = 0) -> None:
    """Add the content of the message to a span, which user code may have modified too, and end the span.

    The span has had the first `linked` of the links since its start, for the sampler.
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
    """The context `base`, in which no span is current, with `parent` as the current span if it has a span_id."""
    base = Context() if base is None else base
    if not parent.span_id:
        return base
    return trace.set_span_in_context(NonRecordingSpan(span_context(parent, is_remote=is_remote)), base)
