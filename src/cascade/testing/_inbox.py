"""What a receiver's two servers share: the fault in force, the requests, the spans."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from cascade.testing._decode import drop_last_spans, span_count, spans_of_request
from cascade.testing.faults import Fault
from cascade.testing.received import ReceivedSpan, Spans

Protocol = Literal["http/protobuf", "grpc"]
Signal = Literal["traces", "metrics", "logs"]


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One export request, whatever became of it.

    Attributes:
        path: The path of the URL, or the full name of gRPC's method.
        headers: Names in lower case; gRPC's metadata.
        encoding: HTTP's `Content-Encoding`; empty without one, and for gRPC, whose library does not tell.
        size: Bytes of the body; as compressed with HTTP, as unpacked with gRPC.
    """

    protocol: Protocol
    path: str
    headers: dict[str, str] = field(hash=False)
    encoding: str
    size: int
    signal: Signal


class Inbox:
    """Keeps what arrives, and wakes those who wait for it. Spans stay encoded until somebody looks at them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._decoding = threading.Lock()
        self._fault: Fault | None = None
        self._uses_left: int | None = None
        self._closed = False
        self._version = 0
        self._forget()

    def _forget(self) -> None:
        self._requests: list[ReceivedRequest] = []
        self._count = 0
        self._encoded: list[bytes] = []
        self._decoded: list[ReceivedSpan] = []
        self._others: dict[Signal, list[Any]] = {"metrics": [], "logs": []}

    @property
    def fault(self) -> Fault | None:
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        with self._changed:
            self._fault, self._uses_left = fault, fault.times if fault else None

    @property
    def span_count(self) -> int:
        return self._count

    @property
    def spans(self) -> Spans:
        with self._decoding:
            with self._changed:
                encoded, self._encoded = self._encoded, []
                decoded = self._decoded
            for body in encoded:
                decoded += spans_of_request(ExportTraceServiceRequest.FromString(body))
            return Spans(decoded)

    @property
    def requests(self) -> list[ReceivedRequest]:
        with self._changed:
            return list(self._requests)

    def others(self, signal: Signal) -> list[Any]:
        with self._changed:
            return list(self._others[signal])

    def clear(self) -> None:
        with self._decoding, self._changed:
            self._forget()
            self._has_changed()

    def admit(self, request: ReceivedRequest) -> Fault:
        """Note a request that is there in full, and say what shall go wrong with it."""
        with self._changed:
            self._requests.append(request)
            fault = self._fault or Fault()
            if self._uses_left is not None:
                self._uses_left -= 1
                if not self._uses_left:
                    self._fault = self._uses_left = None
            self._has_changed()
        return fault

    def hold(self, fault: Fault, gone: Callable[[], bool] = lambda: False) -> bool:
        """Wait for as long as the fault says; False if there is nobody left who wants an answer."""
        with self._changed:
            limit = None if fault.silent else fault.delay
            return not self._changed.wait_for(lambda: self._closed or gone(), limit)

    def wake(self) -> None:
        """Look again whether somebody is gone."""
        with self._changed:
            self._changed.notify_all()

    def store(self, signal: Signal, body: bytes, fault: Fault) -> bytes:
        """Keep the data; returns the answer.

        Raises:
            DecodeError: It is no OTLP.
        """
        match signal:
            case "traces":
                return self._store_spans(body, fault)
            case "metrics":
                self._store_other(signal, ExportMetricsServiceRequest.FromString(body))
                return ExportMetricsServiceResponse().SerializeToString()
            case "logs":
                self._store_other(signal, ExportLogsServiceRequest.FromString(body))
                return ExportLogsServiceResponse().SerializeToString()

    def wait_until(self, holds: Callable[[], bool], timeout: float) -> bool:
        """Ask again at each change whether it holds, until it does; False when the time is over. No lock is held."""
        deadline = time.monotonic() + timeout
        while True:
            seen = self._version
            if holds():
                return True
            if not self._changes_from(seen, deadline - time.monotonic()):
                return False

    def close(self) -> None:
        """Let go of all requests that are held."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def summary(self) -> str:
        """What has arrived, in one line."""
        requests = Counter(f"{request.protocol} {request.signal}" for request in self.requests)
        asked = ", ".join(f"{count} x {what}" for what, count in requests.items()) or "no requests"
        return f"{self.spans.summary()} (requests: {asked})"

    def _store_spans(self, body: bytes, fault: Fault) -> bytes:
        request, response = ExportTraceServiceRequest.FromString(body), ExportTraceServiceResponse()
        if fault.rejected_spans:
            response.partial_success.rejected_spans = drop_last_spans(request, fault.rejected_spans)
            response.partial_success.error_message = fault.message
            body = request.SerializeToString()
        with self._changed:
            self._encoded.append(body)
            self._count += span_count(request)
            self._has_changed()
        return response.SerializeToString()

    def _changes_from(self, version: int, timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._version != version, timeout)

    def _store_other(self, signal: Signal, request: Any) -> None:
        with self._changed:
            self._others[signal].append(request)
            self._has_changed()

    def _has_changed(self) -> None:
        self._version += 1
        self._changed.notify_all()
