"""Connections of urllib3 with a deadline for the request as a whole.

The timeouts of urllib3 limit each operation of a socket by itself: a server that sends one byte now and then would delay a
request without limit.
"""

import encodings.idna  # noqa: F401 - sockets import it with the first host name, which in a thread can meet a fork
import math
import socket
import ssl
import time
from base64 import b64encode
from http.client import IncompleteRead
from typing import Any, cast
from urllib.parse import unquote

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool, PoolManager, ProxyManager
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import Timeout, parse_url

from cascade.connectors.otel.network import proxy_of, tls_context
from cascade.connectors.otel.options import ExportOptions


class Deadline(Timeout):
    """Time limit of one request, on the clock of `time.monotonic`. A plain `Timeout` starts again after a tunnel."""

    def __init__(self, end: float) -> None:
        super().__init__()
        self._end = end

    def clone(self) -> "Deadline":
        return Deadline(self._end)

    @property
    def connect_timeout(self) -> float:
        return _left(self._end)

    @property
    def read_timeout(self) -> float:
        return _left(self._end)


class StaleConnectionError(Exception):
    """Raised when the server has closed an idle connection, which it may do at any time."""


class _Socket(socket.socket):
    """Socket whose timeout limits all operations together until it is set again."""

    _end = math.inf
    has_ended = False  # the server has closed the connection
    has_responded = False

    def settimeout(self, value: float | None, /) -> None:
        self._end = math.inf if value is None else time.monotonic() + value
        super().settimeout(value)

    def gettimeout(self) -> float | None:
        return None if self._end == math.inf else _left(self._end)

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        super().settimeout(self.gettimeout())
        count = super().recv_into(*args, **kwargs)
        self.has_ended = count == 0
        return count

    def send(self, data: Any, flags: int = 0) -> int:
        super().settimeout(self.gettimeout())
        return super().send(data, flags)

    def sendall(self, data: Any, flags: int = 0) -> None:
        super().settimeout(self.gettimeout())
        super().sendall(data, flags)


class _TlsSocket(_Socket, ssl.SSLSocket):
    pass


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        """Connect to the first address of the host that accepts. Each address gets its share of the time.

        The operating system has no time limit for the resolution of a name.
        """
        deadline = time.monotonic() + float(self.timeout or 0)
        addresses = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        error = OSError(f"{self.host} has no address")
        for index, (family, kind, number, _, address) in enumerate(addresses):
            opened = _Socket(family, kind, number)
            try:
                opened.settimeout(_left(deadline) / (len(addresses) - index))
                opened.connect(address)
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                opened.settimeout(_left(deadline))
            except OSError as failure:
                opened.close()
                error = failure
            else:
                return opened
        raise error

    def getresponse(self) -> Any:
        used = cast("_Socket", self.sock)
        try:
            response = super().getresponse()
        except ConnectionError as error:
            if used.has_responded:
                raise StaleConnectionError from error
            raise
        if used.has_ended:  # http.client treats the end of a connection as the end of the headers
            response.close()
            raise IncompleteRead(b"")
        used.has_responded = True
        return response


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls: Any = _Connection  # Any, because pyright accepts no class of urllib3 for the type in urllib3


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls: Any = _TlsConnection


def open_pool(options: ExportOptions) -> PoolManager:
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


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
