"""Clients that speak OTLP by hand, so that a test sees what really came back."""

import http.client
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue

from tests.lab.waiting import HANG

TRACES = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes


def request_bytes(*names: str) -> bytes:
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number, name in enumerate(names, 1):
        span = scope.spans.add(name=name, trace_id=bytes([1] * 16), span_id=bytes([number] * 8))
        span.attributes.add(key="raw", value=AnyValue(bytes_value=b"\x00\xff"))
    return request.SerializeToString()


def connect(endpoint: str, *, tls: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    url = urlsplit(endpoint)
    assert url.hostname
    if tls is not None:
        return http.client.HTTPSConnection(url.hostname, url.port, timeout=HANG, context=tls)
    return http.client.HTTPConnection(url.hostname, url.port, timeout=HANG)


def post(
    endpoint: str,
    body: bytes,
    path: str = "/v1/traces",
    *,
    tls: ssl.SSLContext | None = None,
    **headers: str,
) -> Answer:
    connection = connect(endpoint, tls=tls)
    try:
        return exchange(connection, body, path, **headers)
    finally:
        connection.close()


def exchange(connection: http.client.HTTPConnection, body: bytes, path: str = "/v1/traces", **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request("POST", path, body, {"Content-Type": "application/x-protobuf", **named})
    response = connection.getresponse()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


Export = Callable[..., bytes]
