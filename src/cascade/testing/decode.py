"""Decodes trace export requests of OTLP's protobuf into received spans."""

from collections.abc import Iterable
from typing import Any

from cascade._imports import missing_extra
from cascade.testing.spans import ReceivedEvent, ReceivedLink, ReceivedSpan

try:
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, InstrumentationScope, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
except ImportError as error:
    raise missing_extra("otel", error) from error

_KINDS = {number: name.removeprefix("SPAN_KIND_") for name, number in Span.SpanKind.items()}
_STATUSES = {number: name.removeprefix("STATUS_CODE_") for name, number in Status.StatusCode.items()}


def decode_spans(request: ExportTraceServiceRequest) -> list[ReceivedSpan]:
    """Return the spans of an export request in their order. Spans of one resource share its dict."""
    spans: list[ReceivedSpan] = []
    for group in request.resource_spans:
        resource = _attributes(group.resource.attributes)
        for scope in group.scope_spans:
            spans += [_span(span, resource, scope.scope) for span in scope.spans]
    return spans


def count_spans(request: ExportTraceServiceRequest) -> int:
    """Return the number of spans in an export request."""
    return sum(len(scope.spans) for group in request.resource_spans for scope in group.scope_spans)


def _span(span: Span, resource: dict[str, Any], scope: InstrumentationScope) -> ReceivedSpan:
    return ReceivedSpan(
        name=span.name,
        trace_id=span.trace_id.hex(),
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex() or None,
        kind=_KINDS.get(span.kind, str(span.kind)),
        start_ns=span.start_time_unix_nano,
        end_ns=span.end_time_unix_nano,
        status=_STATUSES.get(span.status.code, str(span.status.code)),
        status_message=span.status.message,
        attributes=_attributes(span.attributes),
        events=tuple(_event(event) for event in span.events),
        links=tuple(_link(link) for link in span.links),
        resource=resource,
        scope=scope.name,
        scope_version=scope.version,
        flags=span.flags,
        trace_state=span.trace_state,
        dropped_attributes_count=span.dropped_attributes_count,
        dropped_events_count=span.dropped_events_count,
        dropped_links_count=span.dropped_links_count,
        size=span.ByteSize(),
    )


def _event(event: Span.Event) -> ReceivedEvent:
    return ReceivedEvent(
        event.name, event.time_unix_nano, _attributes(event.attributes), event.dropped_attributes_count
    )


def _link(link: Span.Link) -> ReceivedLink:
    return ReceivedLink(
        link.trace_id.hex(),
        link.span_id.hex(),
        _attributes(link.attributes),
        link.trace_state,
        link.flags,
        link.dropped_attributes_count,
    )


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    match kind:
        case None:
            return None
        case "array_value":
            return [_value(item) for item in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case _:
            return getattr(value, kind)
