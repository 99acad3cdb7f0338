"""OTLP over HTTP/1.1 with protobuf bodies, over connections of urllib3 with a deadline for each request.

A timeout of urllib3 limits each operation of a socket separately. A server that sends single bytes could therefore delay a
request without limit.
"""

import contextlib
import encodings.idna  # noqa: F401 - a socket would import it in a sending thread, where a fork breaks it
import gzip
import io
import math
import socket
import ssl
import time
import zlib
from base64 import b64encode
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import Any
from urllib.parse import unquote

from urllib3 import BaseHTTPResponse, HTTPConnectionPool, HTTPSConnectionPool, PoolManager, ProxyManager, Retry
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.util import Timeout, parse_url

from cascade.connectors.otel import reply as replies
from cascade.connectors.otel.network import proxy_of, tls_context
from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.reply import MAX_RETRY_AFTER, Reply

_RETRYABLE = {429, 502, 503, 504}
_TOO_LARGE = 413
_MAX_RESPONSE = 1 << 20  # bytes; an OTLP response has a few hundred
_NO_RETRIES = Retry(False)  # the queue retries
_GZIP_LEVEL = 3  # higher levels need much more time for few bytes, because spans are repetitive
_GZIP_OR_ZLIB = zlib.MAX_WBITS + 32  # detects the header
_FAILURES: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str], ...] = (
    (ConnectionRefusedError, "connection refused"),
    (socket.gaierror, "host name cannot be resolved"),
    ((ConnectionResetError, BrokenPipeError, IncompleteRead), "connection closed before an answer"),
    (HTTPException, "the answer is not HTTP"),
)


class HttpTransport:
    """Sends POST requests to one URL over persistent connections."""

    def __init__(self, options: ExportOptions) -> None:
        self._options = options
        self._pool = _open_pool(options)
        headers = {
            "user-agent": "Cascade-OTLP-Exporter-Python",
            "content-type": "application/x-protobuf",
            **({"content-encoding": options.compression} if options.compression != "none" else {}),
            **options.headers,
        }
        self._headers = {name.title(): value for name, value in headers.items()}

    def send(self, body: bytes, timeout: float) -> Reply:
        try:
            return self._post(_compressed(body, self._options.compression), _Deadline(time.monotonic() + timeout))
        except Exception as error:  # noqa: BLE001 - the transport's contract: a failure is a reply
            return Reply("retry", _reason(_cause(error), timeout), unanswered=True)

    def close(self) -> None:
        # `clear` of urllib3 leaves the connections to the garbage collector.
        pools = self._pool.pools
        for key in pools.keys():  # noqa: SIM118 - the container is not iterable
            pools[key].close()

    def _post(self, body: bytes, deadline: "_Deadline") -> Reply:
        try:
            return self._exchange(body, deadline)
        except _StaleConnectionError:
            return self._exchange(body, deadline)

    def _exchange(self, body: bytes, deadline: "_Deadline") -> Reply:
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
        # A connection whose response was read to its end is back in the pool by then.
        with contextlib.closing(response):
            return self._read(response)

    def _read(self, response: BaseHTTPResponse) -> Reply:
        headers = response.headers
        if HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
            return replies.accepted(self._options.signal, _content(response), headers.get("content-type", ""))
        content = b""
        with contextlib.suppress(HTTPError):  # the status of an error is enough
            content = _content(response)
        reason = f"{response.status} {response.reason or ''}".strip()
        if headers.get("content-type") == "application/x-protobuf":
            reason = f"{reason}: {replies.detail(content)}".removesuffix(": ")
        if response.status in _RETRYABLE:
            return Reply("retry", reason, _retry_after(headers.get("retry-after")))
        if location := headers.get("location"):
            reason += f" to {replies.shortened(location)}, which is not followed: set it as the endpoint"
        return Reply("refused", reason, too_large=response.status == _TOO_LARGE)


def _content(response: BaseHTTPResponse) -> bytes:
    """Return the body, or its first `_MAX_RESPONSE` bytes. A proxy may compress it although the request forbids that."""
    content = b""
    while (left := _MAX_RESPONSE - len(content)) and (part := response.read(left)):
        content += part
    if response.headers.get("content-encoding", "").lower() in {"gzip", "deflate"}:
        with contextlib.suppress(zlib.error):
            return zlib.decompressobj(_GZIP_OR_ZLIB).decompress(content, _MAX_RESPONSE)
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
    return replies.shortened(f"{type(error).__name__}: {error}")


class _Deadline(Timeout):
    """Time limit of one request, on the clock of `time.monotonic`. A plain `Timeout` starts again when a tunnel is open."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self._end = end

    def clone(self) -> "_Deadline":
        return _Deadline(self._end)

    @property
    def connect_timeout(self) -> float:
        return _seconds_left(self._end)

    @property
    def read_timeout(self) -> float:
        return _seconds_left(self._end)


class _StaleConnectionError(Exception):
    """Raised when the server has closed an idle connection, which it may do at any time."""


class _Socket(socket.socket):
    """Socket with one time limit for all sends and the start of a tunnel and of TLS, until the timeout is set again."""

    _end = math.inf

    def settimeout(self, value: float | None, /) -> None:
        self._end = math.inf if value is None else time.monotonic() + value
        super().settimeout(value)

    def gettimeout(self) -> float | None:
        return None if self._end == math.inf else _seconds_left(self._end)

    def send(self, data: Any, flags: int = 0) -> int:
        super().settimeout(self.gettimeout())
        return super().send(data, flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        super().settimeout(self.gettimeout())
        super().sendall(data, flags)


class _TlsSocket(_Socket, ssl.SSLSocket):
    pass


class _Incoming(io.RawIOBase):
    """Stream of the data that a socket receives. The timeout of the socket limits all reads together.

    It works with sockets of any class. A library that replaces the module ssl, such as truststore, has a class of its own.
    """

    def __init__(self, source: socket.socket) -> None:
        self._source = source
        self._end = time.monotonic() + (source.gettimeout() or 0.0)
        self._raw = source.makefile("rb", buffering=0)  # keeps a socket open that its connection has closed
        self.has_ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int | None:
        self._source.settimeout(_seconds_left(self._end))
        count = self._raw.readinto(buffer)
        self.has_ended = count == 0
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self._incoming = _Incoming(sock)
        self.fp = io.BufferedReader(self._incoming)

    def begin(self) -> None:
        """Read the headers, and skip interim responses: http.client skips only 100 and returns the others as final.

        Raises:
            IncompleteRead: The connection ended within the headers, which http.client treats as their end.
        """
        super().begin()
        while self.status < HTTPStatus.OK and not self._incoming.has_ended:
            self.headers: Any = None  # begin() returns at once if there are headers
            super().begin()
        if self._incoming.has_ended:
            raise IncompleteRead(b"")


class _Connection(HTTPConnection):
    response_class = _Response
    _has_responded = False

    def _new_conn(self) -> socket.socket:
        """Connect to the first address of the host that accepts. The time is divided between the addresses.

        The resolution of the name has no time limit, because the operating system has none.
        """
        self._has_responded = False
        deadline = time.monotonic() + float(self.timeout or 0)
        addresses = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        error = OSError(f"{self.host} has no address")
        for index, (family, kind, number, _, address) in enumerate(addresses):
            try:
                opened = _Socket(family, kind, number)  # raises for IPv6 if the kernel has none
            except OSError as failure:
                error = failure
                continue
            try:
                opened.settimeout(_seconds_left(deadline) / (len(addresses) - index))
                opened.connect(address)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                opened.settimeout(_seconds_left(deadline))
            except OSError as failure:
                opened.close()
                error = failure
            else:
                return opened
        raise error

    def getresponse(self) -> Any:
        try:
            response = super().getresponse()
        except ConnectionError as error:
            if self._has_responded:
                raise _StaleConnectionError from error
            raise
        self._has_responded = True
        return response


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls: Any = _Connection  # Any, because pyright accepts no class of urllib3 for the type in urllib3


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls: Any = _TlsConnection


def _open_pool(options: ExportOptions) -> PoolManager:
    """Return a pool of connections to the endpoint, through the proxy of the environment if there is one.

    Raises:
        OSError: A certificate cannot be loaded.
    """
    url = parse_url(options.endpoint)
    context = None
    if url.scheme == "https":
        context = tls_context(options)
        context.sslsocket_class = _TlsSocket
    proxy = proxy_of(url.scheme or "", url.host or "", url.port or (80 if context is None else 443))
    if proxy is None:
        pool = PoolManager(ssl_context=context)
    else:
        headers = {"Proxy-Authorization": _basic(proxy.auth)} if proxy.auth else {}
        pool = ProxyManager(proxy._replace(auth=None).url, proxy_headers=headers, ssl_context=context)
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return pool


def _basic(credentials: str) -> str:
    user, _, password = credentials.partition(":")
    return "Basic " + b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()


def _seconds_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
