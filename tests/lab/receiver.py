"""An OTLP receiver over HTTP and gRPC with faults."""

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any as PackedAny
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from cascade.testing import OtlpReceiver
from cascade.testing.receiver import MAX_REQUEST_BYTES, HttpResponse, ReceivedRequest, Signal, error_response
from tests.lab.faults import Fault
from tests.lab.grpc_server import GrpcServer

__all__ = ["Fault", "FaultyReceiver"]

_GARBAGE = b"\xff<html>this is no protobuf</html>"


class FaultyReceiver(OtlpReceiver):
    """An `OtlpReceiver` that also serves gRPC, and applies `fault` to its requests. `fault = None` ends a fault."""

    def __init__(
        self,
        *,
        certfile: str | Path | None = None,
        keyfile: str | Path | None = None,
        max_request_bytes: int = MAX_REQUEST_BYTES,
    ) -> None:
        self._released = threading.Condition()
        self._is_closing = False
        self._fault: Fault | None = None
        self._remaining: int | None = None
        super().__init__(certfile=certfile, keyfile=keyfile, max_request_bytes=max_request_bytes)
        credentials = None
        if certfile is not None and keyfile is not None:
            pair = (Path(keyfile).read_bytes(), Path(certfile).read_bytes())
            credentials = grpc.ssl_server_credentials([pair])
        self._grpc = GrpcServer(self._respond_to_grpc, max_bytes=max_request_bytes, credentials=credentials)
        self._grpc.start()

    def close(self) -> None:
        """Close all connections, those of held requests included."""
        with self._released:
            self._is_closing = True
            self._released.notify_all()
        super().close()
        self._grpc.stop()

    @property
    def grpc_endpoint(self) -> str:
        """The URL of the gRPC server."""
        return f"{self.http_endpoint.partition(':')[0]}://127.0.0.1:{self._grpc.port}"

    def endpoint(self, protocol: str) -> str:
        """Return the endpoint for a value of `OTEL_EXPORTER_OTLP_PROTOCOL`."""
        return {"http/protobuf": self.http_endpoint, "grpc": self.grpc_endpoint}[protocol]

    @property
    def fault(self) -> Fault | None:
        """The current fault; None after its last request."""
        return self._fault

    @fault.setter
    def fault(self, fault: Fault | None) -> None:
        with self._released:
            self._fault, self._remaining = fault, fault.times if fault else None

    def respond(self, request: ReceivedRequest, body: bytes) -> HttpResponse | None:
        fault = self._admit(request)
        if not self._hold(fault) or fault.disconnect:
            return None
        if fault.redirect is not None:
            return HttpResponse(fault.http_status or 307, b"", {"Location": fault.redirect})
        if fault.http_status is None:
            stored = self._store(request.signal, body, fault)
            return HttpResponse(200, _GARBAGE if fault.garbage else stored)
        headers = {} if fault.retry_after is None else {"Retry-After": str(math.ceil(fault.retry_after))}
        if fault.garbage:
            return HttpResponse(fault.http_status, _GARBAGE, headers)
        return error_response(fault.http_status, fault.message, headers)

    def _respond_to_grpc(self, request: ReceivedRequest, body: bytes, context: grpc.ServicerContext) -> bytes:
        fault = self._admit(request)
        context.add_callback(self._wake)
        if not self._hold(fault, lambda: not context.is_active()) or fault.disconnect:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was closed")
        if fault.grpc_code is not None:
            _abort(context, fault, grpc.StatusCode[fault.grpc_code])
        stored = self._store(request.signal, body, fault)
        return _GARBAGE if fault.garbage else stored

    def _admit(self, request: ReceivedRequest) -> Fault:
        """Record a request and return its fault. A test that waits for the request may then set another fault."""
        with self._released:
            fault = self._fault or Fault()
            if self._remaining is not None:
                self._remaining -= 1
                if not self._remaining:
                    self._fault = self._remaining = None
        self.record(request)
        return fault

    def _hold(self, fault: Fault, is_cancelled: Callable[[], bool] = lambda: False) -> bool:
        """Wait for the time of the fault. Return False if the receiver was closed or the call was cancelled."""
        with self._released:
            timeout = None if fault.silent else fault.delay
            return not self._released.wait_for(lambda: self._is_closing or is_cancelled(), timeout)

    def _wake(self) -> None:
        with self._released:
            self._released.notify_all()

    def _store(self, signal: Signal, body: bytes, fault: Fault) -> bytes:
        if not fault.rejected_spans or signal != "traces":
            return self.store(signal, body)
        request, response = ExportTraceServiceRequest.FromString(body), ExportTraceServiceResponse()
        response.partial_success.rejected_spans = _drop_last_spans(request, fault.rejected_spans)
        response.partial_success.error_message = fault.message
        self.store(signal, request.SerializeToString())
        return response.SerializeToString()


def _drop_last_spans(request: ExportTraceServiceRequest, count: int) -> int:
    """Remove up to `count` spans from the end of a request and return their number."""
    remaining = count
    for group in reversed(request.resource_spans):
        for scope in reversed(group.scope_spans):
            kept = max(0, len(scope.spans) - remaining)
            remaining -= len(scope.spans) - kept
            del scope.spans[kept:]
    return count - remaining


def _abort(context: grpc.ServicerContext, fault: Fault, code: grpc.StatusCode) -> NoReturn:
    if fault.retry_after is not None:
        context.set_trailing_metadata((("grpc-status-details-bin", _details(fault, code)),))
    context.abort(code, fault.message)


def _details(fault: Fault, code: grpc.StatusCode) -> bytes:
    nanos, seconds = math.modf(fault.retry_after or 0.0)
    info, packed = RetryInfo(), PackedAny()
    info.retry_delay.seconds, info.retry_delay.nanos = int(seconds), round(nanos * 1e9)
    packed.Pack(info)
    number: int = code.value[0]
    encoded: bytes = Status(code=number, message=fault.message, details=[packed]).SerializeToString()
    return encoded
