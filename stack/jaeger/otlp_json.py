"""Decodes OTLP/JSON, which Jaeger returns, into received spans."""

import base64
from collections.abc import Iterable
from typing import Any

from cascade.testing.spans import ReceivedEvent, ReceivedLink, ReceivedSpan

_KINDS = ("UNSPECIFIED", "INTERNAL", "SERVER", "CLIENT", "PRODUCER", "CONSUMER")
_STATUSES = ("UNSET", "OK", "ERROR")


def spans_of_json(data: dict[str, Any]) -> list[ReceivedSpan]:
    """Return the spans of a `TracesData` object in their order. Spans of one resource share its dict."""
    spans: list[ReceivedSpan] = []
    for group in data.get("resourceSpans", ()):
        resource = _attributes(group.get("resource", {}))
        for scope in group.get("scopeSpans", ()):
            spans += [_span(span, resource, scope.get("scope", {})) for span in scope.get("spans", ())]
    return spans


def _span(span: dict[str, Any], resource: dict[str, Any], scope: dict[str, Any]) -> ReceivedSpan:
    status = span.get("status", {})
    return ReceivedSpan(
        name=span.get("name", ""),
        trace_id=span["traceId"],
        span_id=span["spanId"],
        parent_span_id=span.get("parentSpanId") or None,
        kind=_named(_KINDS, span.get("kind", 0)),
        start_ns=int(span.get("startTimeUnixNano", 0)),
        end_ns=int(span.get("endTimeUnixNano", 0)),
        status=_named(_STATUSES, status.get("code", 0)),
        status_message=status.get("message", ""),
        attributes=_attributes(span),
        events=tuple(_event(event) for event in span.get("events", ())),
        links=tuple(_link(link) for link in span.get("links", ())),
        resource=resource,
        scope=scope.get("name", ""),
        scope_version=scope.get("version", ""),
        flags=int(span.get("flags", 0)),
        trace_state=span.get("traceState", ""),
        dropped_attributes_count=span.get("droppedAttributesCount", 0),
        dropped_events_count=span.get("droppedEventsCount", 0),
        dropped_links_count=span.get("droppedLinksCount", 0),
    )


def _event(event: dict[str, Any]) -> ReceivedEvent:
    return ReceivedEvent(
        event.get("name", ""),
        int(event.get("timeUnixNano", 0)),
        _attributes(event),
        event.get("droppedAttributesCount", 0),
    )


def _link(link: dict[str, Any]) -> ReceivedLink:
    return ReceivedLink(
        link["traceId"],
        link["spanId"],
        _attributes(link),
        link.get("traceState", ""),
        int(link.get("flags", 0)),
        link.get("droppedAttributesCount", 0),
    )


def _named(names: tuple[str, ...], value: int | str) -> str:
    """The name of an enum's value. Older writers send the name with a prefix, `SPAN_KIND_SERVER`, not the number."""
    return names[value] if isinstance(value, int) else value.rpartition("_")[2]


def _attributes(owner: dict[str, Any]) -> dict[str, Any]:
    return _pairs(owner.get("attributes", ()))


def _pairs(pairs: Iterable[dict[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: _value(pair.get("value", {})) for pair in pairs}


def _value(value: dict[str, Any]) -> Any:
    match value:
        case {"intValue": number}:
            return int(number)
        case {"bytesValue": encoded}:
            return base64.b64decode(encoded)
        case {"arrayValue": array}:
            return [_value(item) for item in array.get("values", ())]
        case {"kvlistValue": pairs}:
            return _pairs(pairs.get("values", ()))
        case _:
            return next(iter(value.values()), None)
