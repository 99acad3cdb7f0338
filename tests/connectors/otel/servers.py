"""Servers with and without faults, each on a free port for the duration of a `with` block."""

import contextlib
import gzip
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from stack.addresses import reserved_port
from tests.lab.waiting import HANG

METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"


@dataclass
class HttpServer:
    """The requests that a server has received, and its next responses."""

    endpoint: str = ""
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    responses: list[tuple[int, dict[str, str], bytes]] = field(default_factory=list)
    default_response: tuple[int, dict[str, str], bytes] = (200, {"Content-Type": "application/x-protobuf"}, b"")
    may_respond: threading.Event = field(default_factory=threading.Event)
    received: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    connections: int = 0

    def next_response(self) -> tuple[int, dict[str, str], bytes]:
        return self.responses.pop(0) if self.responses else self.default_response


def span_names(bodies: list[bytes]) -> list[str]:
    """Return the names of all spans in these requests."""
    requests = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    scopes = [scope for request in requests for resource in request.resource_spans for scope in resource.scope_spans]
    return [span.name for scope in scopes for span in scope.spans]


@contextlib.contextmanager
def http_server(port: int = 0) -> Iterator[HttpServer]:
    """Serve HTTP. `bodies` are those of accepted requests. While `may_respond` is not set, the server sends no response."""
    state = HttpServer()
    state.may_respond.set()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            state.connections += 1

        def do_POST(self) -> None:
            packed = self.rfile.read(int(self.headers["Content-Length"]))
            state.headers.append({name.lower(): value for name, value in self.headers.items()})
            state.paths.append(self.path)
            state.received.release()
            state.may_respond.wait(HANG)
            status, headers, content = state.next_response()
            if status < 300:
                state.bodies.append(_unpacked(packed, self.headers.get("Content-Encoding")))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            """Print nothing: some tests close the connection during a request."""

    with Server(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        state.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield state
        finally:
            state.may_respond.set()
            server.shutdown()
            thread.join()


@dataclass
class GrpcServer:
    """The requests that a server has received, and its response: a message, or a status if there is a code."""

    endpoint: str = ""
    bodies: list[bytes] = field(default_factory=list)
    metadata: list[dict[str, str | bytes]] = field(default_factory=list)
    response: bytes = b""
    code: grpc.StatusCode | None = None
    details: str = ""
    trailing: tuple[tuple[str, str | bytes], ...] = ()


@contextlib.contextmanager
def grpc_server(port: int = 0, address: str = "") -> Iterator[GrpcServer]:
    state = GrpcServer()

    def export(body: bytes, context: grpc.ServicerContext) -> bytes:
        state.metadata.append(dict(context.invocation_metadata()))
        if state.code is not None:
            context.set_trailing_metadata(state.trailing)
            context.abort(state.code, state.details)
        state.bodies.append(body)
        return state.response

    handler = grpc.unary_unary_rpc_method_handler(export, None, None)
    service, method = METHOD.strip("/").split("/")
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        port = server.add_insecure_port(address or f"127.0.0.1:{port}")
        server.start()
        state.endpoint = f"http://127.0.0.1:{port}"
        try:
            yield state
        finally:
            server.stop(None).wait()


@contextlib.contextmanager
def raw_server(handle: Callable[[socket.socket], None]) -> Iterator[str]:
    """Accept connections one after the other, and call `handle` with each. Yield the endpoint."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.settimeout(HANG)
                        handle(connection)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            # Closing the socket does not end accept(); shutting it down does.
            server.shutdown(socket.SHUT_RDWR)
            thread.join()


def forward(source: socket.socket, sink: socket.socket) -> None:
    """Forward the received bytes of one connection to another until either ends."""
    with contextlib.suppress(OSError):
        while received := source.recv(65536):
            sink.sendall(received)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def respond_http2(status: bytes, connection: socket.socket) -> None:
    """Respond to an HTTP/2 request with a page that has this status; without a status, close the connection."""
    connection.recv(65536)
    connection.sendall(_frame(_SETTINGS, 0, 0) + _frame(_SETTINGS, _ACK, 0))
    received = b""
    while _HEADERS not in _frame_types(received):
        received += connection.recv(65536)
    if status:
        # HPACK: `:status` is entry 8 of the static table; a new name has the index 0.
        fields = b"\x08\x03" + status + b"\x00\x0ccontent-type\x09text/html"
        connection.sendall(_frame(_HEADERS, _END_HEADERS, 1, fields) + _frame(_DATA, _END_STREAM, 1, b"<html>"))
        connection.recv(65536)


_DATA, _HEADERS, _SETTINGS = 0, 1, 4
_ACK = _END_STREAM = 1
_END_HEADERS = 4


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def _frame_types(received: bytes) -> list[int]:
    rest, types = received, list[int]()
    while len(rest) >= 9:
        types.append(rest[3])
        rest = rest[9 + int.from_bytes(rest[:3], "big") :]
    return types


@contextlib.contextmanager
def silent_server() -> Iterator[str]:
    """Yield the endpoint of a server that completes the TCP handshake and sends nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def unused_endpoint() -> str:
    """Return an endpoint that refuses connections."""
    return f"http://127.0.0.1:{reserved_port()}"


def _unpacked(body: bytes, encoding: str | None) -> bytes:
    match encoding:
        case "gzip":
            return gzip.decompress(body)
        case "deflate":
            return zlib.decompress(body)
        case _:
            return body
