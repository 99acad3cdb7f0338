"""The receiver's HTTP server."""

import contextlib
import math
import socket
import ssl
import threading
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from google.protobuf.message import DecodeError
from google.rpc.status_pb2 import Status  # type: ignore[import-untyped]

from cascade.testing._inbox import Inbox, ReceivedRequest, Signal
from cascade.testing.faults import Fault

GARBAGE = b"\xff<html>this is no protobuf</html>"

_PROTOBUF = "application/x-protobuf"
_PATHS: dict[str, Signal] = {"/v1/traces": "traces", "/v1/metrics": "metrics", "/v1/logs": "logs"}
# What zlib calls the containers: gzip's header, zlib's header, which HTTP calls deflate.
_CONTAINERS = {"gzip": 31, "deflate": 15}
_POLL = 0.05
"""Seconds that closing may have to wait for the accepting thread to look up."""

_PATIENCE = 0.3
"""Seconds that closing waits for the handlers, which have been told to stop."""

_CHUNK = 1 << 16


class _RefusedError(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class HttpServer(ThreadingHTTPServer):
    """A thread for each connection, all of which `stop` can end."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, inbox: Inbox, *, max_bytes: int, tls: ssl.SSLContext | None) -> None:
        self.inbox, self.max_bytes, self._tls = inbox, max_bytes, tls
        self._connections: dict[int, tuple[socket.socket, threading.Thread]] = {}
        self._guard = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)
        self._acceptor = threading.Thread(target=self.serve_forever, args=(_POLL,), name="otlp-http", daemon=True)

    def start(self) -> None:
        self._acceptor.start()

    def stop(self) -> None:
        """Stop listening and cut all connections, idle ones too."""
        self.shutdown()
        self._acceptor.join()
        self.server_close()
        with self._guard:
            connections = list(self._connections.values())
        for connection, _ in connections:
            cut(connection)
        for _, thread in connections:
            thread.join(_PATIENCE)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        if self._tls is not None:
            # The handshake is the handler's: a client that does not speak must not hold up the others.
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        work = (request, client_address)
        thread = threading.Thread(target=self.process_request_thread, args=work, name="otlp-http", daemon=True)
        with self._guard:
            self._connections[id(request)] = request, thread
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._connections.pop(id(request), None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away, or does not like our certificate, is what some tests are about."""


def cut(connection: socket.socket) -> None:
    """End a connection from any thread; a read in another thread then sees its end."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: HttpServer  # pyright: ignore[reportIncompatibleVariableOverride]
    protocol_version = "HTTP/1.1"
    # Headers and body go out as two writes: with Nagle's algorithm a kept connection would wait 40 ms for each answer.
    disable_nagle_algorithm = True

    def setup(self) -> None:
        if isinstance(self.request, ssl.SSLSocket):
            self.request.do_handshake()
        super().setup()

    def do_POST(self) -> None:
        try:
            self._export()
        except _RefusedError as error:
            self._fail(error.status, str(error))
        except DecodeError as error:
            self._fail(400, f"not OTLP: {error}")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        """A receiver in a test is quiet."""

    def _export(self) -> None:
        packed = self._read()
        signal = _PATHS.get(self.path)
        if signal is None:
            raise _RefusedError(404, f"no such path: {self.path}; there are {', '.join(_PATHS)}")
        if self.headers.get_content_type() != _PROTOBUF:
            raise _RefusedError(415, f"{self.headers.get_content_type()} is not supported: send {_PROTOBUF}")
        encoding = self.headers.get("Content-Encoding", "").lower()
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = ReceivedRequest("http/protobuf", self.path, headers, encoding, len(packed), signal)
        fault = self.server.inbox.admit(request)
        body = _unpacked(packed, encoding, self.server.max_bytes)
        self._answer(signal, body, fault)

    def _read(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            self.close_connection = True
            raise _RefusedError(411, "a request must have a Content-Length")
        if int(length) <= self.server.max_bytes:
            packed = self.rfile.read(int(length))
            if len(packed) < int(length):
                raise ConnectionError("the client went away within its request")
            return packed
        # Read all the same: closing a connection with unread data would take our answer away from the client.
        for start in range(0, int(length), _CHUNK):
            self.rfile.read(min(_CHUNK, int(length) - start))
        raise _RefusedError(413, f"{length} bytes are more than {self.server.max_bytes}")

    def _answer(self, signal: Signal, body: bytes, fault: Fault) -> None:
        if not self.server.inbox.hold(fault) or fault.disconnect:
            self.close_connection = True
            cut(self.connection)
        elif fault.redirect is not None:
            self._respond(fault.http_status or 307, b"", Location=fault.redirect)
        elif fault.http_status is not None:
            self._fail(fault.http_status, fault.message, fault)
        else:
            answer = self.server.inbox.store(signal, body, fault)
            self._respond(200, GARBAGE if fault.garbage else answer)

    def _fail(self, status: int, message: str, fault: Fault | None = None) -> None:
        content: bytes = GARBAGE if fault and fault.garbage else Status(message=message).SerializeToString()
        if fault is None or fault.retry_after is None:
            self._respond(status, content)
        else:
            self._respond(status, content, **{"Retry-After": str(math.ceil(fault.retry_after))})

    def _respond(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": _PROTOBUF, "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)


def _unpacked(packed: bytes, encoding: str, max_bytes: int) -> bytes:
    if encoding in {"", "identity"}:
        return packed
    if encoding not in _CONTAINERS:
        raise _RefusedError(415, f"the encoding {encoding} is not supported: use {' or '.join(_CONTAINERS)}")
    unpacker = zlib.decompressobj(_CONTAINERS[encoding])
    try:
        body = unpacker.decompress(packed, max_bytes + 1)
    except zlib.error as error:
        raise _RefusedError(400, f"the body is not {encoding}: {error}") from error
    if len(body) > max_bytes:
        raise _RefusedError(413, f"unpacked it is more than {max_bytes} bytes")
    if not unpacker.eof:
        raise _RefusedError(400, f"the body is not {encoding}: it ends too early")
    return body
