"""The receiver's gRPC server."""

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
from google.protobuf.any_pb2 import Any as PackedAny
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo  # type: ignore[import-untyped]
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from cascade.testing._inbox import Inbox, ReceivedRequest, Signal
from cascade.testing._otlp_http import GARBAGE
from cascade.testing.faults import Fault

_SERVICES: dict[str, Signal] = {
    "opentelemetry.proto.collector.trace.v1.TraceService": "traces",
    "opentelemetry.proto.collector.metrics.v1.MetricsService": "metrics",
    "opentelemetry.proto.collector.logs.v1.LogsService": "logs",
}
# A held request holds a thread: more at once than any exporter has in flight. They are made as they are needed.
_MAX_THREADS = 64
_PATIENCE = 0.3
"""Seconds that closing waits for calls which have been told to end."""


class GrpcServer:
    """The Export methods of the three services, on bytes: an answer may then be no protobuf at all."""

    def __init__(self, inbox: Inbox, *, max_bytes: int, credentials: grpc.ServerCredentials | None) -> None:
        self._inbox = inbox
        self._pool = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="otlp-grpc")
        options = [("grpc.max_receive_message_length", max_bytes), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(self._pool, options=options)
        self._server.add_generic_rpc_handlers(
            tuple(
                grpc.method_handlers_generic_handler(service, {"Export": self._handler(service, signal)})
                for service, signal in _SERVICES.items()
            )
        )
        address = "127.0.0.1:0"
        if credentials is None:
            self.port = self._server.add_insecure_port(address)
        else:
            self.port = self._server.add_secure_port(address, credentials)

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait(_PATIENCE)
        self._pool.shutdown(wait=False)

    def _handler(self, service: str, signal: Signal) -> "grpc.RpcMethodHandler[bytes, bytes]":
        def export(body: bytes, context: grpc.ServicerContext) -> bytes:
            headers = {name: _text(value) for name, value in context.invocation_metadata()}
            request = ReceivedRequest("grpc", f"/{service}/Export", headers, "", len(body), signal)
            return self._answer(request, body, context)

        return grpc.unary_unary_rpc_method_handler(export)

    def _answer(self, request: ReceivedRequest, body: bytes, context: grpc.ServicerContext) -> bytes:
        fault = self._inbox.admit(request)
        context.add_callback(self._inbox.wake)
        if not self._inbox.hold(fault, gone=lambda: not context.is_active()) or fault.disconnect:
            context.abort(grpc.StatusCode.UNAVAILABLE, "the connection was cut")
        if fault.grpc_code is not None:
            _abort(context, fault, grpc.StatusCode[fault.grpc_code])
        try:
            answer = self._inbox.store(request.signal, body, fault)
        except DecodeError as error:
            context.abort(grpc.StatusCode.INTERNAL, f"not OTLP: {error}")
        return GARBAGE if fault.garbage else answer


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


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
