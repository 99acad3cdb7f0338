"""An OTLP server over gRPC. Requests and responses are bytes, so that a response may be no protobuf."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from cascade.testing.receiver import ReceivedRequest, Signal

_SERVICES: dict[str, Signal] = {
    "opentelemetry.proto.collector.trace.v1.TraceService": "traces",
    "opentelemetry.proto.collector.metrics.v1.MetricsService": "metrics",
    "opentelemetry.proto.collector.logs.v1.LogsService": "logs",
}
_MAX_THREADS = 64
"""A held request occupies a thread. No exporter has more requests in flight."""
_STOP_TIMEOUT = 0.3
"""Seconds that `stop` waits for calls."""

Respond = Callable[[ReceivedRequest, bytes, grpc.ServicerContext], bytes]


class GrpcServer:
    """Serves the Export methods of the three services on 127.0.0.1 and a free port."""

    def __init__(self, respond: Respond, *, max_bytes: int, credentials: grpc.ServerCredentials | None) -> None:
        self._respond = respond
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
        self._server.stop(None).wait(_STOP_TIMEOUT)
        self._pool.shutdown(wait=False)

    def _handler(self, service: str, signal: Signal) -> "grpc.RpcMethodHandler[bytes, bytes]":
        def export(body: bytes, context: grpc.ServicerContext) -> bytes:
            headers = {name: _text(value) for name, value in context.invocation_metadata()}
            request = ReceivedRequest("grpc", f"/{service}/Export", headers, "", len(body), signal)
            try:
                return self._respond(request, body, context)
            except DecodeError as error:
                context.abort(grpc.StatusCode.INTERNAL, f"the body is not OTLP: {error}")

        return grpc.unary_unary_rpc_method_handler(export)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value
