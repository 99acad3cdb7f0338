"""Receiver with the exporters of the SDK, and its faults over real sockets."""

import http.client
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from tests.lab.receiver import Fault, FaultyReceiver
from tests.lab.waiting import HANG


@pytest.fixture
def receiver() -> Iterator[FaultyReceiver]:
    with FaultyReceiver() as started:
        yield started


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_spans_of_the_sdk_are_decoded(receiver: FaultyReceiver, protocol: str) -> None:
    exporter: Any = (
        HttpExporter(f"{receiver.http_endpoint}/v1/traces", compression=None)
        if protocol == "http"
        else GrpcExporter(receiver.grpc_endpoint, insecure=True, compression=grpc.Compression.Gzip)
    )
    provider = TracerProvider(resource=Resource({"service.name": "tests"}), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    link = Link(SpanContext(5, 6, is_remote=True, trace_flags=TraceFlags(1)), {"why": "because"})
    tracer = provider.get_tracer("scope")
    with tracer.start_as_current_span("parent", kind=SpanKind.SERVER, links=[link]) as span:
        span.set_attributes({"text": "x", "number": 1, "float": 1.5, "flag": True, "list": ["a", "b"]})
        span.add_event("happened", {"k": "v"}, 5)
        span.set_status(Status(StatusCode.ERROR, "broken"))
        with tracer.start_as_current_span("child"):
            pass
    provider.shutdown()
    spans = receiver.wait_for(lambda spans: len(spans) == 2)
    parent, child = spans.one("parent"), spans.one("child")
    assert parent.attributes == {"text": "x", "number": 1, "float": 1.5, "flag": True, "list": ["a", "b"]}
    assert (parent.kind, parent.status, parent.status_message) == ("SERVER", "ERROR", "broken")
    assert (parent.scope, parent.resource["service.name"]) == ("scope", "tests")
    assert [(event.name, event.time_ns, event.attributes) for event in parent.events] == [("happened", 5, {"k": "v"})]
    assert [(link.trace_id, link.span_id, link.attributes) for link in parent.links] == [
        (f"{5:032x}", f"{6:016x}", {"why": "because"})
    ]
    assert child.parent_span_id == parent.span_id
    assert spans.children(parent) == [child]
    assert spans.roots() == [parent]


def post(receiver: FaultyReceiver, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    address = urlsplit(receiver.http_endpoint)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=HANG)
    try:
        connection.request("POST", "/v1/traces", body, {"Content-Type": "application/x-protobuf"})
        response = connection.getresponse()
        return response.status, {k.lower(): v for k, v in response.getheaders()}, response.read()
    finally:
        connection.close()


def call(receiver: FaultyReceiver, body: bytes = b"") -> bytes:
    with grpc.insecure_channel(receiver.grpc_endpoint.removeprefix("http://")) as channel:
        export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export", bytes, bytes)
        return bytes(export(body, timeout=HANG))


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault.unavailable(), 503, "UNAVAILABLE"),
        (Fault.throttled(), 429, "RESOURCE_EXHAUSTED"),
        (Fault.bad_request(), 400, "INVALID_ARGUMENT"),
        (Fault.unauthorized(), 401, "UNAUTHENTICATED"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_refusal_has_the_status_of_each_protocol(
    receiver: FaultyReceiver, fault: Fault, status: int, code: str
) -> None:
    receiver.fault = fault
    assert post(receiver)[0] == status
    with pytest.raises(grpc.RpcError) as caught:
        call(receiver)
    assert caught.value.code().name == code
    receiver.fault = None
    assert post(receiver)[0] == 200


def test_a_fault_ends_after_its_number_of_requests(receiver: FaultyReceiver) -> None:
    receiver.fault = Fault.unavailable(times=1, retry_after=7)
    status, headers, _ = post(receiver)
    assert (status, headers["retry-after"]) == (503, "7")
    assert post(receiver)[0] == 200


def test_a_partial_success_has_the_number_of_rejected_spans(receiver: FaultyReceiver) -> None:
    receiver.fault = Fault.partial_success(3, "too old")
    request = ExportTraceServiceRequest()
    request.resource_spans.add().scope_spans.add().spans.extend(Span(name=f"span {n}") for n in range(5))
    sent = request.SerializeToString()
    for body in (post(receiver, sent)[2], call(receiver, sent)):
        partial = ExportTraceServiceResponse.FromString(body).partial_success
        assert (partial.rejected_spans, partial.error_message) == (3, "too old")


def test_a_disconnection_closes_the_connection(receiver: FaultyReceiver) -> None:
    receiver.fault = Fault.disconnection()
    with pytest.raises((http.client.RemoteDisconnected, ConnectionResetError)):
        post(receiver)
    with pytest.raises(grpc.RpcError):
        call(receiver)


def test_closing_the_receiver_ends_a_silent_request() -> None:
    import threading

    receiver = FaultyReceiver()
    receiver.fault = Fault.silence()
    outcome: list[object] = []

    def send() -> None:
        try:
            outcome.append(post(receiver))
        except OSError as error:
            outcome.append(error)

    sending = threading.Thread(target=send)
    sending.start()
    with pytest.raises(AssertionError):
        receiver.wait_for(bool, timeout=0.2)
    assert outcome == []
    receiver.close()
    sending.join(HANG)
    assert isinstance(outcome[0], OSError)


def test_a_wait_without_spans_fails(receiver: FaultyReceiver) -> None:
    with pytest.raises(AssertionError):
        receiver.wait_for(lambda spans: len(spans) > 0, timeout=0.01)


def test_a_body_that_is_not_otlp_is_refused(receiver: FaultyReceiver) -> None:
    assert post(receiver, b"\xff\xff\xff")[0] == 400
