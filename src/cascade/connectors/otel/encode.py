"""Encoding of finished spans as protobuf.

A span is encoded before it is queued. The bytes need less memory than a span object, and a request contains them unchanged.

Cascade has its own encoder for speed: it encodes the span of a task in 3 µs. The encoder of the SDK takes 26 µs. The
generated protobuf classes take 14 µs, or 7 µs with a cache for attributes that many spans share.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from struct import Struct
from typing import Any

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, SpanFlags, Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext

from cascade._internal_errors import raise_in_tests
from cascade.connectors.otel.buffer import QueuedItems
from cascade.connectors.otel.protobuf import field, key_value, varint
from cascade.telemetry import attributes as a
from cascade.telemetry.limits import MAX_VALUE_BYTES
from cascade.telemetry.span_data import Attributes, SpanData, SpanEvent

SCOPE = "cascade"
"""Name of the instrumentation scope of Cascade."""


try:
    VERSION = version("cascade-runs")
except PackageNotFoundError:  # the source tree is used without an installation
    VERSION = "0"

_LOCAL = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS = 1, 2, 2  # fields of the messages around a span

_TRACE_ID, _SPAN_ID, _TRACE_STATE, _PARENT_SPAN_ID, _ATTRIBUTES = 1, 2, 3, 4, 9  # of Span
_KEY, _VALUE, _STRING = 1, 2, 1  # of KeyValue; of AnyValue
_INT = b"\x18"  # tag of the field for an integer in AnyValue
_DOUBLE = Struct("<3sd").pack  # the field 2 of KeyValue: an AnyValue of nine bytes with its field 4
_TIMES = Struct("<cQcQ").pack  # start and end: the 64-bit fields 7 and 8 of Span
_MAX_CACHED = 256  # characters


def encode_span(data: SpanData) -> bytes:
    """Return a finished span as an encoded `opentelemetry.proto.trace.v1.Span`."""
    parts = [
        _place(data.trace_id, data.parent_id),
        field(_SPAN_ID, bytes.fromhex(data.span_id)),
        _TIMES(b"\x39", data.start_ns, b"\x41", data.end_ns),
        _name_and_kind(data.name, data.is_run),
    ]
    for key, value in data.attributes.items():
        if key in _UNIQUE:
            parts.append(_UNIQUE[key](key, value))
        elif type(value) in _CACHED and (type(value) is not str or len(value) <= _MAX_CACHED):
            parts.append(_cached(key, value))
        else:
            parts.append(_encoded(key, value))
    if data.tracestate:
        parts.append(field(_TRACE_STATE, data.tracestate.encode()))
    if data.links or data.events or data.error is not None:
        parts.append(_rare_fields(data))
    return b"".join(parts)


def encode_task(payload: Mapping[str, Any]) -> bytes | None:
    """Return the encoded span of a task that has succeeded. Return None for a message with other keys than the common ones.

    The result is that of `span_mapping.spans_of` and `encode_span`, which take three times as long. `payload` must be a
    message of this process: its types are not checked.
    """
    body, metadata = payload["body"], payload["body"]["metadata"]
    if body.get("state") != "COMPLETED" or not metadata.keys() <= _COMMON_KEYS or "tracestate" in payload:
        return None
    task_id = body["task_id"]
    if len(task_id) > _MAX_TEXT:
        return None
    start_ns, end_ns = metadata["start_ns"], metadata["end_ns"]
    parts = [
        _place(payload["trace_id"], payload["parent_span_id"]),
        field(_SPAN_ID, bytes.fromhex(payload["span_id"])),
        _TIMES(b"\x39", start_ns, b"\x41", end_ns + (end_ns == start_ns)),
        _common(
            payload["run_id"],
            body["task_name"],
            metadata["result"],
            metadata.get("function"),
            metadata.get("link_count"),
        ),
        _unique_text(a.TASK_ID, task_id),
    ]
    if "map_index" in metadata:
        parts.append(_unique_int(a.MAP_INDEX, metadata["map_index"]))
    if "label" in metadata:
        parts.append(_unique_text(a.TASK_LABEL, metadata["label"]))
    if "tags" in metadata:
        parts.append(_tags(*metadata["tags"]))
    if "cpu_seconds" in metadata:
        parts.append(_unique_float(a.TASK_CPU_SECONDS, metadata["cpu_seconds"]))
    if "queue_seconds" in metadata:
        parts.append(_unique_float(a.TASK_QUEUE_SECONDS, metadata["queue_seconds"]))
    for link in metadata.get("links", ()):
        if "tracestate" in link:
            return None
        ids = bytes.fromhex(link["trace_id"]), bytes.fromhex(link["span_id"])
        parts.append(_LINK(b"\x6a\x21\x0a\x10", ids[0], b"\x12\x08", ids[1], b"\x35", _LOCAL))
    return b"".join(parts)


_COMMON_KEYS = frozenset(
    {
        *(
            "kind",
            "start_ns",
            "end_ns",
            "result",
            "map_id",
            "map_index",
            "label",
            "tags",
            "function",
            "links",
            "link_count",
        ),
        *("cpu_seconds", "queue_seconds"),
    }
)
"""Keys of the metadata of most tasks."""
_MAX_TEXT = MAX_VALUE_BYTES // 4  # characters; a longer text may have to be truncated
_LINK = Struct("<4s16s2s8scI").pack  # the field 13 of Span: trace id, span id, flags


@lru_cache(maxsize=1024)
def _common(run_id: str, name: str, result: str, function: str | None, links: int | None) -> bytes:
    """Return the fields that many tasks of a run share."""
    attributes: Attributes = {a.RUN_ID: run_id, a.TASK_NAME: name, a.TASK_RESULT: result}
    attributes |= {a.CODE_FUNCTION_NAME: function, a.TASK_DEPENDENCIES: links}
    found = [_encoded(key, value) for key, value in attributes.items() if value is not None]
    return b"".join([_name_and_kind(name, is_run=False), *found])


@lru_cache(maxsize=1024)
def _tags(*tags: str) -> bytes:
    return _encoded(a.TASK_TAGS, tags)


@lru_cache(maxsize=1024)
def _place(trace_id: str, parent_id: str) -> bytes:
    """Return the trace and the parent, which many spans share. A root span has an empty parent id."""
    return field(_TRACE_ID, bytes.fromhex(trace_id)) + field(_PARENT_SPAN_ID, bytes.fromhex(parent_id))


@lru_cache(maxsize=1024)
def _name_and_kind(name: str, is_run: bool) -> bytes:
    kind = Span.SPAN_KIND_SERVER if is_run else Span.SPAN_KIND_INTERNAL
    return Span(name=name, kind=kind, flags=_LOCAL).SerializeToString()


_CACHED = frozenset({str, int, bool})
"""Types whose equal values have the same encoding. Floats and tuples do not: 0.0 equals -0.0, and (1,) equals (True,)."""


def _encoded(key: str, value: Any) -> bytes:
    return Span(attributes=[key_value(key, value)]).SerializeToString()


# The cache is typed, because 1 and True are equal but have different encodings.
_cached = lru_cache(maxsize=4096, typed=True)(_encoded)


def _unique_text(key: str, value: str) -> bytes:
    text = field(_VALUE, field(_STRING, value.encode()))
    return field(_ATTRIBUTES, _key(key) + text)


def _unique_int(key: str, value: int) -> bytes:
    return field(_ATTRIBUTES, _key(key) + field(_VALUE, _INT + varint(value)))


def _unique_float(key: str, value: float) -> bytes:
    return field(_ATTRIBUTES, _key(key) + _DOUBLE(b"\x12\x09\x21", value))


@lru_cache(maxsize=64)
def _key(key: str) -> bytes:
    return field(_KEY, key.encode())


_UNIQUE: dict[str, Callable[[str, Any], bytes]] = {
    a.TASK_ID: _unique_text,
    a.MAP_INDEX: _unique_int,
    a.TASK_LABEL: _unique_text,
    a.TASK_CPU_SECONDS: _unique_float,
    a.TASK_QUEUE_SECONDS: _unique_float,
    a.CICD_TASK_RUN_ID: _unique_text,
    a.TASK_ARGUMENTS: _encoded,
    a.TASK_OUTPUT: _encoded,
}
"""Encoders of the attributes whose values differ in each span. The encodings of all other attributes are cached."""


def _rare_fields(data: SpanData) -> bytes:
    span = Span()
    for trace_id, span_id, state, attributes in data.links:
        ids = {"trace_id": bytes.fromhex(trace_id), "span_id": bytes.fromhex(span_id)}
        span.links.add(**ids, trace_state=state, flags=_LOCAL, attributes=_key_values(attributes or {}))
    span.events.extend(map(_event, data.events))
    if data.error is not None:
        span.status.CopyFrom(Status(code=Status.STATUS_CODE_ERROR, message=data.error))
    return span.SerializeToString()


def _event(event: SpanEvent) -> Span.Event:
    return Span.Event(name=event.name, time_unix_nano=event.time_ns, attributes=_key_values(event.attributes))


def _key_values(attributes: Attributes) -> list[KeyValue]:
    return [key_value(key, value) for key, value in attributes.items()]


class EncodedResource:
    """Cache of an encoded resource. The resource is encoded again after a change, for example in a forked child.

    Args:
        resource: Returns the current resource.
        encode: Encodes a resource.
    """

    def __init__(self, resource: Callable[[], Resource], encode: Callable[[Resource], bytes]) -> None:
        self._resource = resource
        self._encode = encode
        self._encoded: tuple[object, bytes] = (None, b"")

    def __call__(self) -> bytes:
        resource = self._resource()
        attributes, encoded = self._encoded
        if attributes is not resource.attributes:
            encoded = self._encode(resource)
            self._encoded = resource.attributes, encoded
        return encoded


class Envelope:
    """Resource and instrumentation scope of the spans in a request. `resource` returns the current resource."""

    def __init__(self, resource: Callable[[], Resource]) -> None:
        (around,) = _around(resource()).scope_spans
        self._scope = ScopeSpans(scope=around.scope, schema_url=around.schema_url).SerializeToString()
        self._resource = EncodedResource(resource, _encode_resource)

    def wrap(self, spans: Iterable[bytes]) -> bytes:
        """Return an encoded `ExportTraceServiceRequest` with the spans."""
        scope_spans = self._scope + b"".join(field(_SPANS, span) for span in spans)
        return field(_RESOURCE_SPANS, self._resource() + field(_SCOPE_SPANS, scope_spans))


def _encode_resource(resource: Resource) -> bytes:
    around = _around(resource)
    return ResourceSpans(resource=around.resource, schema_url=around.schema_url).SerializeToString()


def _around(resource: Resource) -> ResourceSpans:
    """Encode the resource and the scope with the encoder of the SDK. It needs a span, which is empty."""
    scope = InstrumentationScope(SCOPE, VERSION, "")
    span = ReadableSpan("", SpanContext(1, 1, is_remote=False), resource=resource, instrumentation_scope=scope)
    (around,) = encode_spans([span]).resource_spans
    return around


def encode(entries: Sequence[QueuedItems], envelope: Envelope | None = None) -> tuple[bytes, list[QueuedItems]]:
    """Return the body of an OTLP request, and the entries that cannot be encoded."""
    ours = [item for entry in entries for item in entry.items if isinstance(item, bytes)]
    body = envelope.wrap(ours) if ours and envelope else b""
    others = [entry for entry in entries if not isinstance(entry.items[0], bytes)]
    if not others:
        return body, []
    try:
        return body + _encode_sdk_spans(others), []
    except Exception as error:  # noqa: BLE001 - protobuf raises exceptions of many classes
        raise_in_tests(error)
        good = [entry for entry in others if _is_encodable(entry)]
    kept = set(good)
    return body + (_encode_sdk_spans(good) if good else b""), [entry for entry in others if entry not in kept]


def _encode_sdk_spans(entries: Iterable[QueuedItems]) -> bytes:
    spans = [item for entry in entries for item in entry.items if not isinstance(item, bytes)]
    request = encode_spans(spans)
    _add_tracestates_of_links(request, [span for span in spans if any(link.context.trace_state for link in span.links)])
    return request.SerializeToString()


def _add_tracestates_of_links(request: ExportTraceServiceRequest, spans: Sequence[ReadableSpan]) -> None:
    """Add the tracestates of links, which the encoder of the SDK omits (versions up to 1.45)."""
    links = {span.context.span_id.to_bytes(8): span.links for span in spans if span.context is not None}
    if not links:
        return
    for of_resource in request.resource_spans:
        for of_scope in of_resource.scope_spans:
            for encoded in of_scope.spans:
                for ours, theirs in zip(links.get(encoded.span_id, ()), encoded.links, strict=False):
                    theirs.trace_state = ours.context.trace_state.to_header()


def _is_encodable(entry: QueuedItems) -> bool:
    try:
        _encode_sdk_spans([entry])
    except Exception:  # noqa: BLE001 - protobuf raises exceptions of many classes
        return False
    return True
