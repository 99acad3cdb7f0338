"""An OTLP receiver for tests: an HTTP server on a free port that decodes the requests."""

import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cascade._imports import missing_extra
from cascade.testing.spans import ReceivedSpan, Spans

try:
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
        ExportLogsServiceRequest,
        ExportLogsServiceResponse,
    )
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
        ExportMetricsServiceRequest,
        ExportMetricsServiceResponse,
    )
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
        ExportTraceServiceRequest,
        ExportTraceServiceResponse,
    )

    from cascade.testing._http_server import HttpResponse, HttpServer, ReceivedRequest, Signal, error_response
    from cascade.testing.decode import count_spans, decode_spans
except ImportError as error:
    raise missing_extra("otel", error) from error

__all__ = ["HttpResponse", "OtlpReceiver", "ReceivedRequest", "Signal", "error_response"]

MAX_REQUEST_BYTES = 20 * 1024 * 1024
"""The OpenTelemetry Collector's default limit for HTTP."""

WAIT_TIMEOUT = 60.0
"""Seconds that a wait takes at most. It is long, for loaded machines in CI."""


class OtlpReceiver:
    """Receives OTLP over HTTP/1.1 on 127.0.0.1 and a free port, from its construction until `close`.

    All methods are thread-safe.

    Args:
        certfile: A PEM file with a certificate chain. With it the server accepts TLS only.
        keyfile: The PEM file of its key.
        max_request_bytes: The server answers a larger request with 413, compressed or not.

    Raises:
        ValueError: `certfile` or `keyfile` is missing.
    """

    def __init__(
        self,
        *,
        certfile: str | Path | None = None,
        keyfile: str | Path | None = None,
        max_request_bytes: int = MAX_REQUEST_BYTES,
    ) -> None:
        self._scheme = "http" if certfile is None else "https"
        self._http = HttpServer(self.respond, max_bytes=max_request_bytes, tls=_tls_context(certfile, keyfile))
        self._changed = threading.Condition()
        self._decoding = threading.Lock()
        self._closed = False
        self._version = 0
        self._discard()
        self._http.start()

    def _discard(self) -> None:
        self._requests: list[ReceivedRequest] = []
        self._span_count = 0
        self._encoded: list[bytes] = []
        self._decoded: list[ReceivedSpan] = []
        self._others: dict[Signal, list[Any]] = {"metrics": [], "logs": []}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections and stop listening. Received data can still be read."""
        if not self._closed:
            self._closed = True
            self._http.stop()

    @property
    def http_endpoint(self) -> str:
        """The base URL of `/v1/traces`, `/v1/metrics` and `/v1/logs`."""
        return f"{self._scheme}://127.0.0.1:{self._http.server_address[1]}"

    @property
    def spans(self) -> Spans:
        """The received spans, in the order of their arrival. They are decoded at the first access."""
        with self._decoding:
            with self._changed:
                encoded, self._encoded = self._encoded, []
                decoded = self._decoded
            for body in encoded:
                decoded += decode_spans(ExportTraceServiceRequest.FromString(body))
            return Spans(decoded)

    @property
    def span_count(self) -> int:
        """The number of received spans. They are not decoded."""
        return self._span_count

    @property
    def requests(self) -> list[ReceivedRequest]:
        """All received requests, including those with an error as response."""
        with self._changed:
            return list(self._requests)

    @property
    def metrics(self) -> list[Any]:
        """The received `ExportMetricsServiceRequest` messages."""
        with self._changed:
            return list(self._others["metrics"])

    @property
    def logs(self) -> list[Any]:
        """The received `ExportLogsServiceRequest` messages."""
        with self._changed:
            return list(self._others["logs"])

    def wait_for(self, predicate: Callable[[Spans], bool], timeout: float = WAIT_TIMEOUT) -> Spans:
        """Return the spans once the predicate is true for them. It is evaluated at each request.

        Raises:
            AssertionError: The predicate is false after `timeout` seconds. The text lists the received spans.
        """
        spans = Spans()

        def holds() -> bool:
            nonlocal spans
            spans = self.spans
            return predicate(spans)

        if not self._wait_until(holds, timeout):
            raise AssertionError(f"not received within {timeout:g} s; received: {self._summary()}")
        return spans

    def wait_for_requests(self, count: int = 1, timeout: float = WAIT_TIMEOUT) -> list[ReceivedRequest]:
        """Return the requests once there are `count` of them. A request counts before its response is sent.

        Raises:
            AssertionError: There are fewer after `timeout` seconds. The text lists the received requests.
        """
        if not self._wait_until(lambda: len(self.requests) >= count, timeout):
            raise AssertionError(f"fewer than {count} requests within {timeout:g} s; received: {self._summary()}")
        return self.requests

    def clear(self) -> None:
        """Discard everything received so far."""
        with self._decoding, self._changed:
            self._discard()
            self._notify()

    def respond(self, request: ReceivedRequest, body: bytes) -> HttpResponse | None:
        """Return the response to a request; None closes the connection. A subclass may return another response.

        The server calls it in the connection's thread, with the decompressed body. It may block.

        Raises:
            DecodeError: The body is not OTLP.
        """
        self.record(request)
        return HttpResponse(200, self.store(request.signal, body))

    def record(self, request: ReceivedRequest) -> None:
        """Add a request to `requests`."""
        with self._changed:
            self._requests.append(request)
            self._notify()

    def store(self, signal: Signal, body: bytes) -> bytes:
        """Keep the data of a request, and return the encoded response of a full success.

        Raises:
            DecodeError: The body is not OTLP.
        """
        match signal:
            case "traces":
                count = count_spans(ExportTraceServiceRequest.FromString(body))
                with self._changed:
                    self._encoded.append(body)
                    self._span_count += count
                    self._notify()
                return ExportTraceServiceResponse().SerializeToString()
            case "metrics":
                self._store_other(signal, ExportMetricsServiceRequest.FromString(body))
                return ExportMetricsServiceResponse().SerializeToString()
            case "logs":
                self._store_other(signal, ExportLogsServiceRequest.FromString(body))
                return ExportLogsServiceResponse().SerializeToString()

    def _store_other(self, signal: Signal, request: Any) -> None:
        with self._changed:
            self._others[signal].append(request)
            self._notify()

    def _notify(self) -> None:
        self._version += 1
        self._changed.notify_all()

    def _wait_until(self, holds: Callable[[], bool], timeout: float) -> bool:
        """Evaluate the condition at each change, without a lock, until it is true or the time is over."""
        deadline = time.monotonic() + timeout
        while True:
            version = self._version
            if holds():
                return True
            with self._changed:
                if not self._changed.wait_for(lambda: self._version != version, deadline - time.monotonic()):  # noqa: B023 - called within this iteration
                    return False

    def _summary(self) -> str:
        requests = Counter(f"{request.protocol} {request.signal}" for request in self.requests)
        listed = ", ".join(f"{count} x {kind}" for kind, count in requests.items()) or "no requests"
        return f"{self.spans.summary()} ({listed})"


def _tls_context(certfile: str | Path | None, keyfile: str | Path | None) -> ssl.SSLContext | None:
    if certfile is None and keyfile is None:
        return None
    if certfile is None or keyfile is None:
        raise ValueError("certfile and keyfile must be given together")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certfile, keyfile)
    return context
