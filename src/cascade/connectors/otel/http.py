"""OTLP over HTTP/1.1 with protobuf bodies.

The standard library speaks it: no layer of a client library retries, follows redirects, logs, is instrumented or
waits beyond the deadline.
"""

import contextlib
import gzip
import http.client
import math
import socket
import ssl
import threading
import time
import zlib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from cascade.connectors.otel import answers
from cascade.connectors.otel._connection import Answer, Connection
from cascade.connectors.otel._route import Route, route_to
from cascade.connectors.otel.answers import MAX_RETRY_AFTER, Reply
from cascade.connectors.otel.options import ExportOptions

_RETRYABLE = {429, 502, 503, 504}
_TOO_LARGE = 413
_GZIP_LEVEL = 3  # span batches repeat themselves: higher levels cost much time for few bytes
_FAILURES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (ConnectionRefusedError, "connection refused"),
    (socket.gaierror, "host name cannot be resolved"),
    ((ConnectionResetError, BrokenPipeError, http.client.IncompleteRead), "connection closed before an answer"),
    (http.client.HTTPException, "the answer is not HTTP"),
)


class HttpTransport:
    """Posts to one URL over connections that are kept alive; proxies as `HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY` say."""

    def __init__(self, options: ExportOptions) -> None:
        self._options = options
        self._route = route_to(options)
        self._head = _head(options, self._route)
        self._idle: list[Connection] = []
        self._lock = threading.Lock()

    def send(self, body: bytes, timeout: float) -> Reply:
        try:
            answer = self._post(body, time.monotonic() + timeout)
        except Exception as error:  # noqa: BLE001 - the transport's contract: a failure is a reply
            return Reply("retry", _explained(error, timeout), dead=True)
        return self._read(answer)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _post(self, body: bytes, deadline: float) -> Answer:
        packed = _compressed(body, self._options.compression)
        request = b"%bContent-Length: %d\r\n\r\n%b" % (self._head, len(packed), packed)
        if reused := self._take():
            # A server may close an idle connection just as we write: that is no failure of the peer.
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                return self._exchange(reused, request, deadline)
        return self._exchange(Connection(self._route, deadline), request, deadline)

    def _exchange(self, connection: Connection, request: bytes, deadline: float) -> Answer:
        reusable = False
        try:
            answer, reusable = connection.exchange(request, deadline)
        finally:
            if reusable:
                with self._lock:
                    self._idle.append(connection)
            else:
                connection.close()
        return answer

    def _take(self) -> Connection | None:
        with self._lock:
            while self._idle:
                connection = self._idle.pop()
                if connection.is_fresh():
                    return connection
                connection.close()
        return None

    def _read(self, answer: Answer) -> Reply:
        if 200 <= answer.status < 300:  # noqa: PLR2004 - the HTTP statuses of success
            return answers.accepted(self._options.signal, answer.content, answer.headers.get("content-type", ""))
        reason = f"{answer.status} {answer.phrase}".strip()
        if answer.headers.get("content-type") == "application/x-protobuf":
            reason = f"{reason}: {answers.detail(answer.content)}".removesuffix(": ")
        if answer.status in _RETRYABLE:
            return Reply("retry", reason, _retry_after(answer.headers.get("retry-after")))
        if location := answer.headers.get("location"):
            reason += f" to {answers.shortened(location)}, which is not followed: set it as the endpoint"
        return Reply("refused", reason, too_large=answer.status == _TOO_LARGE)


def _head(options: ExportOptions, route: Route) -> bytes:
    headers = {
        "host": urlsplit(options.endpoint).netloc,
        "user-agent": "Cascade-OTLP-Exporter-Python",
        "content-type": "application/x-protobuf",
        **({"content-encoding": options.compression} if options.compression != "none" else {}),
        **options.headers,
    }
    lines = "".join(f"{name.title()}: {value}\r\n" for name, value in headers.items())
    login = "" if route.tunnel else route.login
    return f"POST {route.target} HTTP/1.1\r\n{lines}{login}".encode()


def _compressed(body: bytes, compression: str) -> bytes:
    match compression:
        case "gzip":
            return gzip.compress(body, _GZIP_LEVEL, mtime=0)
        case "deflate":
            return zlib.compress(body, _GZIP_LEVEL)
        case _:
            return body


def _retry_after(value: str | None) -> float | None:
    """Seconds to wait: the header holds them, or the date to wait for."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            due = parsedate_to_datetime(value)
        except (ValueError, OverflowError):
            return None
        seconds = (due.replace(tzinfo=due.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return None if math.isnan(seconds) else min(max(0.0, seconds), MAX_RETRY_AFTER)


def _explained(error: Exception, timeout: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {timeout:.3g} s"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    for types, text in _FAILURES:
        if isinstance(error, types):
            return text
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return answers.shortened(f"{type(error).__name__}: {error}")
