"""OTLP over HTTP/1.1 with protobuf bodies."""

import contextlib
import gzip
import http.client
import math
import socket
import ssl
import time
import zlib
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from urllib3 import BaseHTTPResponse, Retry
from urllib3.exceptions import HTTPError, ProtocolError

from cascade.connectors.otel import answers
from cascade.connectors.otel.answers import MAX_RETRY_AFTER, Reply
from cascade.connectors.otel.connection import Deadline, StaleConnectionError, open_pool
from cascade.connectors.otel.options import ExportOptions

_RETRYABLE = {429, 502, 503, 504}
_TOO_LARGE = 413
_MAX_RESPONSE = 1 << 20  # bytes; an OTLP response has a few hundred
_NO_RETRIES = Retry(False)  # the queue retries
_GZIP_LEVEL = 3  # higher levels need much more time for few bytes, because spans are repetitive
_FAILURES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (ConnectionRefusedError, "connection refused"),
    (socket.gaierror, "host name cannot be resolved"),
    ((ConnectionResetError, BrokenPipeError, http.client.IncompleteRead), "connection closed before an answer"),
    (http.client.HTTPException, "the answer is not HTTP"),
)


class HttpTransport:
    """Sends POST requests to one URL over persistent connections."""

    def __init__(self, options: ExportOptions) -> None:
        self._options = options
        self._pool = open_pool(options)
        headers = {
            "user-agent": "Cascade-OTLP-Exporter-Python",
            "content-type": "application/x-protobuf",
            **({"content-encoding": options.compression} if options.compression != "none" else {}),
            **options.headers,
        }
        self._headers = {name.title(): value for name, value in headers.items()}

    def send(self, body: bytes, timeout: float) -> Reply:
        try:
            return self._post(_compressed(body, self._options.compression), Deadline(time.monotonic() + timeout))
        except Exception as error:  # noqa: BLE001 - the transport's contract: a failure is a reply
            return Reply("retry", _reason(_cause(error), timeout), unanswered=True)

    def close(self) -> None:
        self._pool.clear()

    def _post(self, body: bytes, deadline: Deadline) -> Reply:
        try:
            return self._exchange(body, deadline)
        except StaleConnectionError:
            return self._exchange(body, deadline)

    def _exchange(self, body: bytes, deadline: Deadline) -> Reply:
        response = self._pool.urlopen(
            "POST",
            self._options.endpoint,
            body=body,
            headers=self._headers,
            timeout=deadline,
            retries=_NO_RETRIES,
            redirect=False,
            preload_content=False,
            decode_content=False,
        )
        with contextlib.closing(
            response
        ):  # a connection whose response was read to its end is back in the pool by then
            return self._read(response)

    def _read(self, response: BaseHTTPResponse) -> Reply:
        headers = response.headers
        if 200 <= response.status < 300:  # noqa: PLR2004 - the HTTP statuses of success
            return answers.accepted(self._options.signal, _content(response), headers.get("content-type", ""))
        content = b""
        with contextlib.suppress(ProtocolError):  # the status of an error is enough
            content = _content(response)
        reason = f"{response.status} {response.reason or ''}".strip()
        if headers.get("content-type") == "application/x-protobuf":
            reason = f"{reason}: {answers.detail(content)}".removesuffix(": ")
        if response.status in _RETRYABLE:
            return Reply("retry", reason, _retry_after(headers.get("retry-after")))
        if location := headers.get("location"):
            reason += f" to {answers.shortened(location)}, which is not followed: set it as the endpoint"
        return Reply("refused", reason, too_large=response.status == _TOO_LARGE)


def _content(response: BaseHTTPResponse) -> bytes:
    """Return the body, or its first `_MAX_RESPONSE` bytes."""
    content = b""
    while (left := _MAX_RESPONSE - len(content)) and (part := response.read(left)):
        content += part
    return content


def _compressed(body: bytes, compression: str) -> bytes:
    match compression:
        case "gzip":
            return gzip.compress(body, _GZIP_LEVEL, mtime=0)
        case "deflate":
            return zlib.compress(body, _GZIP_LEVEL)
        case _:
            return body


def _retry_after(value: str | None) -> float | None:
    """Return the seconds from a header that has either seconds or a date."""
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


def _cause(error: BaseException) -> BaseException:
    """Return the error that exceptions of urllib3 wrap."""
    while isinstance(error, HTTPError) and error.__context__ is not None:
        error = error.__context__
    return error


def _reason(error: BaseException, timeout: float) -> str:
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
