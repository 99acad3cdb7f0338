"""Connections of urllib3 on which a request ends at its deadline.

urllib3 limits each wait for the network by itself, so that a server that sends one byte now and then delays a request
without end. Here all steps of a request share the time: connecting, the tunnel of a proxy, TLS, sending and reading.
"""

import encodings.idna  # noqa: F401 - sockets import it with the first host name, and in a thread beside a fork it is too late
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
from urllib3.util import Timeout, Url, parse_url

from cascade.connectors.otel.options import ExportOptions
from cascade.connectors.otel.proxy import proxy_of
from cascade.connectors.otel.tls import tls_context


class Deadline(Timeout):
    """Time limit of one request: a time of `time.monotonic`. A `Timeout` of urllib3 starts again after a tunnel."""

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
    has_ended = False  # the server has closed its side
    has_answered = False

    def settimeout(self, value: float | None, /) -> None:
        self._end = math.inf if value is None else time.monotonic() + value
        super().settimeout(value)

    def gettimeout(self) -> float | None:  # for the TLS socket that takes over this connection
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
        """Connect to the first address of the host that accepts; each address has its share of the time.

        The time for the resolution of the name cannot be limited.
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
            if used.has_answered:
                raise StaleConnectionError from error
            raise
        if used.has_ended:  # http.client takes the end of a connection for the end of the headers
            response.close()
            raise IncompleteRead(b"")
        used.has_answered = True
        return response


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls: Any = _Connection  # for pyright, no class of urllib3 fits the type that urllib3 declares here


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls: Any = _TlsConnection


def open_pool(options: ExportOptions) -> PoolManager:
    """Return the connections to the endpoint, over the proxy of the environment if there is one.

    Raises:
        OSError: A certificate cannot be loaded.
    """
    url = parse_url(options.endpoint)
    is_tls = url.scheme == "https"
    context = tls_context(options) if is_tls else None
    if context is not None:
        context.sslsocket_class = _TlsSocket
    proxy = proxy_of(url.scheme or "", url.host or "", url.port or (443 if is_tls else 80))
    if proxy is None:
        pool = PoolManager(ssl_context=context)
    else:
        address = proxy._replace(auth=None).url
        pool = ProxyManager(address, proxy_headers=_login(proxy), ssl_context=context)
    pool.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
    return pool


def _login(proxy: Url) -> dict[str, str]:
    if proxy.auth is None:
        return {}
    user, _, password = proxy.auth.partition(":")
    return {"Proxy-Authorization": "Basic " + b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()}


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
