"""The spans of runs that are going on."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from cascade.connectors.otel._provider import Tracing
from cascade.connectors.otel._spans import SpanData
from cascade.telemetry.identity import RunTrace


@dataclass(slots=True)
class LiveRun:
    """One run's root span, and its tasks' and attempts' spans by id. `ended`: attempts that are not to come again."""

    trace: RunTrace
    root: Span
    spans: dict[str, Span] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)

    @property
    def is_recording(self) -> bool:
        return self.root.is_recording()

    def leftovers(self) -> Iterator[Span]:
        """Spans whose terminal message has not come."""
        while self.spans:
            yield self.spans.popitem()[1]


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
                parent,
                kind,
                links=links,
                start_time=start_ns,
                record_exception=False,
                set_status_on_exception=False,
            )

    def finished(self, data: SpanData) -> None:
        """Make a span that has ended already."""
        parent = parent_context(data.trace_id, data.parent_id, data.flags)
        kind = SpanKind.SERVER if data.is_server else SpanKind.INTERNAL
        span = self.start(data.name, data.trace_id, data.span_id, parent, data.start_ns, kind=kind)
        complete(span, data)


def complete(span: Span, data: SpanData, *, is_linked: bool = False) -> None:
    """Write what the message says on a span, beside what user code has written, and end it."""
    if not span.is_recording():
        return
    span.set_attributes(data.attributes)
    for trace_id, span_id in () if is_linked else data.links:
        span.add_link(span_context(trace_id, span_id, data.flags))
    for event in data.events:
        span.add_event(event.name, event.attributes, event.time_ns)
    if data.error is not None:
        span.set_status(Status(StatusCode.ERROR, data.error))
    span.end(data.end_ns)


def span_context(trace_id: str, span_id: str, flags: int, *, is_remote: bool = False) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote, TraceFlags(flags))


def parent_context(trace_id: str, parent_id: str, flags: int, *, is_remote: bool = False) -> Context:
    """A context of its own in which that span is current; without a parent, one in which none is."""
    if not parent_id:
        return Context()
    parent = NonRecordingSpan(span_context(trace_id, parent_id, flags, is_remote=is_remote))
    return trace.set_span_in_context(parent, Context())
