"""The HTTP server of the OTLP receiver."""

import contextlib
import socket
import ssl
import threading
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

Signal = Literal["traces", "metrics", "logs"]

_PROTOBUF = "application/x-protobuf"
_PATHS: dict[str, Signal] = {"/v1/traces": "traces", "/v1/metrics": "metrics", "/v1/logs": "logs"}
_WINDOW_BITS = {"gzip": 31, "deflate": 15}
"""`wbits` of zlib for each encoding. "deflate" of HTTP has the zlib header."""
_POLL = 0.05
"""Seconds between two checks of the shutdown flag by the accepting thread."""
_JOIN_TIMEOUT = 0.3
"""Seconds that `stop` waits for each thread after it has closed the connections."""
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class ReceivedRequest:
    """One export request. Its response may be an error.

    Attributes:
        protocol: `"http/protobuf"` or `"grpc"`.
        path: The path of the URL, or the full name of the gRPC method.
        headers: HTTP headers or gRPC metadata. Names are in lower case.
        encoding: HTTP's `Content-Encoding`. Empty without one, and for gRPC, whose library does not expose it.
        size: Bytes of the body: compressed for HTTP, decompressed for gRPC.
    """

    protocol: Literal["http/protobuf", "grpc"]
    path: str
    headers: dict[str, str] = field(hash=False)
    encoding: str
    size: int
    signal: Signal


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """The response to an export request. The server adds `Content-Type` and `Content-Length`."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict, hash=False)


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> HttpResponse:
    """Return a response whose body is a `google.rpc.Status`, as OTLP requires."""
    return HttpResponse(status, Status(message=message).SerializeToString(), headers or {})


Respond = Callable[[ReceivedRequest, bytes], HttpResponse | None]
"""Handles a request and its decompressed body, in the connection's thread. None closes the connection."""


class HttpServer(ThreadingHTTPServer):
    """Serves OTLP over HTTP/1.1 on 127.0.0.1, with one thread per connection."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, respond: Respond, *, max_bytes: int, tls: ssl.SSLContext | None) -> None:
        self.respond, self.max_bytes, self._tls = respond, max_bytes, tls
        self._connections: dict[int, tuple[socket.socket, threading.Thread]] = {}
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self._acceptor = threading.Thread(target=self.serve_forever, args=(_POLL,), name="otlp-http", daemon=True)

    def start(self) -> None:
        self._acceptor.start()

    def stop(self) -> None:
        """Stop listening and close all connections, idle ones included."""
        self.shutdown()
        self._acceptor.join()
        self.server_close()
        with self._lock:
            connections = list(self._connections.values())
        for connection, _ in connections:
            _close(connection)
        for _, thread in connections:
            thread.join(_JOIN_TIMEOUT)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._tls is not None:
            # The handler does the handshake: a silent client must not block the accepting thread.
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        work = (request, client_address)
        thread = threading.Thread(target=self.process_request_thread, args=work, name="otlp-http", daemon=True)
        with self._lock:
            self._connections[id(request)] = request, thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.pop(id(request), None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print nothing: in tests, clients disconnect and reject certificates on purpose."""


class _RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Handler(BaseHTTPRequestHandler):
    server: HttpServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    # Headers and body are two writes: with Nagle's algorithm a kept connection would wait 40 ms for each response.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        super().setup()

    def do_POST(self) -> None:
        try:
            response = self._respond()
        except _RefusedError as error:
            response = error_response(error.status, str(error))
        except DecodeError as error:
            response = error_response(400, f"the body is not OTLP: {error}")
        if response is None:
            self.close_connection = True
            _close(self.connection)
        else:
            self._send(response)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """Print nothing."""

    def _respond(self) -> HttpResponse | None:
        packed = self._read()
        signal = _PATHS.get(self.path)
        if signal is None:
            raise _RefusedError(404, f"path {self.path} is unknown; use one of {', '.join(_PATHS)}")
        if self.headers.get_content_type() != _PROTOBUF:
            raise _RefusedError(415, f"{self.headers.get_content_type()} is not supported; send {_PROTOBUF}")
        encoding = self.headers.get("Content-Encoding", "").lower()
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = _decompressed(packed, encoding, self.server.max_bytes)
        request = ReceivedRequest("http/protobuf", self.path, headers, encoding, len(packed), signal)
        return self.server.respond(request, body)

    def _read(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            raise _RefusedError(411, "a request must have a Content-Length")
        if int(length) <= self.server.max_bytes:
            packed = self.rfile.read(int(length))
            if len(packed) < int(length):
                raise ConnectionError("the client disconnected within its request")
            return packed
        # Read the body: the client would lose the response if the server closed a connection with unread data.
        for start in range(0, int(length), _CHUNK):
            self.rfile.read(min(_CHUNK, int(length) - start))
        raise _RefusedError(413, f"the body has {length} bytes; the limit is {self.server.max_bytes}")

    def _send(self, response: HttpResponse) -> None:
        self.send_response(response.status)
        fixed = {"Content-Type": _PROTOBUF, "Content-Length": str(len(response.body))}
        for name, value in {**fixed, **response.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(response.body)


def _close(connection: socket.socket) -> None:
    """Shut a connection down. A read in another thread then returns the end of the stream."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _decompressed(packed: bytes, encoding: str, max_bytes: int) -> bytes:
    if encoding in {"", "identity"}:
        return packed
    if encoding not in _WINDOW_BITS:
        raise _RefusedError(415, f"encoding {encoding} is not supported; use {' or '.join(_WINDOW_BITS)}")
    decompressor = zlib.decompressobj(_WINDOW_BITS[encoding])
    try:
        body = decompressor.decompress(packed, max_bytes + 1)
    except zlib.error as error:
        raise _RefusedError(400, f"the body is not {encoding}: {error}") from error
    if len(body) > max_bytes:
        raise _RefusedError(413, f"the decompressed body has more than {max_bytes} bytes")
    if not decompressor.eof:
        raise _RefusedError(400, f"the body is not {encoding}: it is truncated")
    return body
