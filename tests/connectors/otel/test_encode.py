"""The own encoding of spans equals that of the SDK."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

import cascade as cs
from cascade.connectors.memory import MemoryConnector
from cascade.connectors.otel.encode import Envelope, encode_span, encode_task
from cascade.connectors.otel.live_spans import emit_finished
from cascade.connectors.otel.protobuf import varint
from cascade.connectors.otel.provider import tracer_of
from cascade.telemetry import attributes as a
from cascade.telemetry.span_data import SpanData, SpanEvent, SpanLink
from cascade.telemetry.span_mapping import spans_of
from cascade.telemetry.wire import task_body

exporter = InMemorySpanExporter()
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(exporter))
tracer = tracer_of(provider)
assert tracer is not None

NS = st.integers(1, 2**63 - 1)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=300)
VALUE = st.one_of(
    TEXT,
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.lists(TEXT, max_size=3).map(tuple),
)
KEYS = st.sampled_from([a.TASK_ID, a.MAP_INDEX, a.TASK_NAME, a.RUN_ID, a.TASK_OUTPUT, a.MAP_SIZE, "mine", "n/a", "ü"])
ATTRIBUTES = st.dictionaries(KEYS, VALUE).map(lambda found: {k: v for k, v in found.items() if _fits(k, v)})
SPAN_IDS = st.integers(1, 2**64 - 1).map(lambda n: f"{n:016x}")
TRACESTATES = st.sampled_from(["", "acme=t61rcWkgMzE", "a@b=1,ot=th:c;rv:8"])
TRACE_IDS = st.integers(1, 2**128 - 1).map(lambda n: f"{n:032x}")


def _fits(key: str, value: Any) -> bool:
    """Return attributes; some keys have only one type."""
    kinds = {a.TASK_ID: str, a.MAP_INDEX: int}
    return type(value) is kinds.get(key, type(value))


SPANS = st.builds(
    SpanData,
    name=TEXT,
    trace_id=TRACE_IDS,
    span_id=SPAN_IDS,
    parent_id=st.one_of(SPAN_IDS, st.just("")),
    start_ns=NS,
    end_ns=NS,
    attributes=ATTRIBUTES,
    flags=st.just(1),
    is_run=st.booleans(),
    error=st.none() | TEXT,
    events=st.lists(st.builds(SpanEvent, name=TEXT, time_ns=NS, attributes=ATTRIBUTES), max_size=2).map(tuple),
    links=st.lists(st.builds(SpanLink, TRACE_IDS, SPAN_IDS, TRACESTATES, st.none() | ATTRIBUTES), max_size=3).map(
        tuple
    ),
    tracestate=TRACESTATES,
)


def by_the_sdk(data: SpanData) -> Any:
    exporter.clear()
    assert tracer is not None
    emit_finished(tracer, data, None)
    (resource_spans,) = encode_spans(exporter.get_finished_spans()).resource_spans
    span = resource_spans.scope_spans[0].spans[0]
    for encoded, link in zip(span.links, exporter.get_finished_spans()[0].links, strict=True):
        encoded.trace_state = link.context.trace_state.to_header()  # which the SDK's encoder leaves out
    return span


def in_order(span: Any) -> Any:
    """Sort the attributes, which have no order, and remove an empty status."""
    if not span.status.ByteSize():
        span.ClearField("status")
    for holder in (span, *span.events):
        ordered = sorted(holder.attributes, key=lambda attribute: attribute.key)
        del holder.attributes[:]
        holder.attributes.extend(ordered)
    return span


@given(SPANS)
def test_the_encoding_equals_that_of_the_sdk(data: SpanData) -> None:
    assert in_order(Span.FromString(encode_span(data))) == in_order(by_the_sdk(data))


LINKS = st.fixed_dictionaries({"trace_id": TRACE_IDS, "span_id": SPAN_IDS})
COMMON: dict[str, Any] = {
    "kind": st.just("task"),
    "start_ns": NS,
    "end_ns": st.integers(1, 2**63 - 2),
    "result": st.just("success"),
}
OPTIONAL = {
    "map_id": TEXT,
    "map_index": st.integers(0, 2**40),
    "label": TEXT,
    "tags": st.lists(TEXT, min_size=1, max_size=3),
    "function": TEXT,
    "links": st.lists(LINKS, max_size=3),
    "link_count": st.integers(1, 1000),
    "cpu_seconds": st.floats(0, 1e9),
    "queue_seconds": st.floats(0, 1e9),
}
TASK_IDS = st.one_of(TEXT, st.text("x\N{SNOWMAN}", min_size=400, max_size=2_100))


def ended(task_id: str, trace_id: str, ids: tuple[str, str], metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the message of a task that has succeeded."""
    body = task_body(task_id, "work", "COMPLETED", 1.0, None, metadata)
    return {"run_id": "r", "trace_id": trace_id, "span_id": ids[0], "parent_span_id": ids[1], "body": body}


@given(TASK_IDS, TRACE_IDS, st.tuples(SPAN_IDS, SPAN_IDS), st.fixed_dictionaries(COMMON, optional=OPTIONAL))
def test_the_span_of_a_common_message_equals_that_of_the_mapping(
    task_id: str, trace_id: str, ids: tuple[str, str], metadata: dict[str, Any]
) -> None:
    payload = ended(task_id, trace_id, ids, metadata)
    encoded, (data,) = encode_task(payload), spans_of(payload)
    assert (encoded is None) == (len(task_id) > 500)
    assert encoded is None or in_order(Span.FromString(encoded)) == in_order(Span.FromString(encode_span(data)))


@pytest.mark.parametrize(
    "other",
    [
        {"waits": []},
        {"attempts": []},
        {"exception": {"type": "E", "message": ""}},
        {"output": 1},
        {"map_size": 0},
        {"links": [{"trace_id": "1" * 32, "span_id": "2" * 16, "tracestate": "a=b"}]},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_message_with_other_keys_has_no_common_span(other: dict[str, Any]) -> None:
    metadata = {"kind": "task", "start_ns": 1, "end_ns": 2, "result": "success"}
    payload = ended("t", "1" * 32, ("2" * 16, "3" * 16), metadata)
    assert encode_task(payload) is not None
    assert encode_task(ended("t", "1" * 32, ("2" * 16, "3" * 16), metadata | other)) is None
    assert encode_task(payload | {"tracestate": "a=b"}) is None


def test_most_messages_of_a_run_are_common_ones() -> None:
    connector = MemoryConnector()
    first, then = (cs.task(lambda x: x, name=name, threaded=False) for name in ("first", "then"))
    cs.run(
        then([first(1), first(2).with_label("two"), then.map(x=[first(3), 4])]), connector=connector, log_level="OFF"
    )
    bodies = {p["span_id"]: p for p in connector.payloads if p["body"].get("state") == "COMPLETED"}
    others = [p["body"]["task_name"] for p in bodies.values() if encode_task(p) is None]
    assert others == ["map(then)"]


@given(st.lists(SPANS, max_size=3), st.dictionaries(TEXT.filter(bool), TEXT, max_size=3))
def test_an_envelope_has_all_spans_under_one_resource_and_scope(spans: list[SpanData], found: dict[str, str]) -> None:
    resource = Resource(found, "https://example.org/schema")
    envelope = Envelope(lambda: resource)
    request = ExportTraceServiceRequest.FromString(envelope.wrap(map(encode_span, spans)))
    (resource_spans,) = request.resource_spans
    assert {one.key: one.value.string_value for one in resource_spans.resource.attributes} == found
    assert resource_spans.schema_url == "https://example.org/schema"
    (scope_spans,) = resource_spans.scope_spans
    assert (scope_spans.scope.name, scope_spans.scope.version) == ("cascade", cs.__version__)
    assert [span.span_id.hex() for span in scope_spans.spans] == [span.span_id for span in spans]


@given(st.integers(-(2**63), 2**64 - 1))
def test_varints_equal_those_of_protobuf(number: int) -> None:
    field = b"\x18"  # of AnyValue: its integer
    value = Span.FromString(
        b"\x4a" + varint(len(_attribute(field + varint(number)))) + _attribute(field + varint(number))
    )
    assert value.attributes[0].value.int_value % 2**64 == number % 2**64


def _attribute(value: bytes) -> bytes:
    return b"\x12" + varint(len(value)) + value


def test_equal_values_of_different_types_have_different_encodings() -> None:
    for value in (-0.0, 0.0, (True,), (1,), (1.0,)):
        data = SpanData("a", f"{1:032x}", f"{1:016x}", "", 1, 2, {"mine": value})
        assert in_order(Span.FromString(encode_span(data))) == in_order(by_the_sdk(data))
