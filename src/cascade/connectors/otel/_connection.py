"""One HTTP/1.1 connection on which every wait ends at one deadline.

`http.client` and the pools above it limit each single wait, so that a peer which sends a byte now and then is waited
for without end. Here dialling, TLS, sending and reading share the time that is left.
"""

import encodings.idna  # noqa: F401 - sockets import it with the first host name, and in a thread beside a fork it is too late
import io
import socket
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPResponse, IncompleteRead
from typing import TYPE_CHECKING, cast

from cascade.connectors.otel._route import Route

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_MAX_ANSWER = 1 << 20  # bytes; an OTLP answer has a few hundred


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, read to its end or to the limit."""

    status: int
    phrase: str
    headers: dict[str, str]
    content: bytes


class TunnelRefusedError(OSError):
    """Raised when the proxy would not connect us to the server."""


class Connection:
    """A connection kept alive from one request to the next; for one thread at a time."""

    def __init__(self, route: Route, deadline: float) -> None:
        self._socket = _dial(route.host, route.port, deadline)
        try:
            if route.tunnel:
                self._open_tunnel(route, deadline)
            if route.tls:
                self._socket.settimeout(_left(deadline))
                self._socket = route.tls.wrap_socket(self._socket, server_hostname=route.server_name)
        except BaseException:
            self.close()
            raise

    def exchange(self, request: bytes, deadline: float) -> tuple[Answer, bool]:
        """Send one request; the answer, and whether the connection can be used again.

        Raises:
            IncompleteRead: The connection ended within the answer. An error status is an answer without its body too.
        """
        response = self._request(request, "POST", deadline)
        content, is_complete = _content(response)
        if not is_complete and response.status < HTTPStatus.MULTIPLE_CHOICES:
            raise IncompleteRead(content)
        # http.client's own rule: a response read to its end is closed.
        reusable = response.isclosed() and not response.will_close
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, response.reason, headers, content), reusable

    def is_fresh(self) -> bool:
        """False once the peer has closed an idle connection, or sent data without a request."""
        try:
            self._socket.settimeout(0)
            # Past TLS, on the bare socket: all that counts is whether anything has come.
            socket.socket.recv(self._socket, 1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def close(self) -> None:
        self._socket.close()

    def _request(self, request: bytes, method: str, deadline: float) -> HTTPResponse:
        self._socket.settimeout(_left(deadline))
        self._socket.sendall(request)
        readable = _Readable(self._socket, deadline)
        # HTTPResponse calls only makefile() of its socket.
        response = HTTPResponse(cast("socket.socket", readable), method=method)
        response.begin()
        if readable.has_ended:  # http.client takes the end of a connection for the end of the headers
            raise IncompleteRead(b"")
        return response

    def _open_tunnel(self, route: Route, deadline: float) -> None:
        head = f"CONNECT {route.tunnel} HTTP/1.1\r\nHost: {route.tunnel}\r\n{route.login}\r\n"
        response = self._request(head.encode(), "CONNECT", deadline)
        if response.status != 200:  # noqa: PLR2004 - the HTTP status
            raise TunnelRefusedError(f"proxy answered {response.status} {response.reason}")


class _Readable(io.RawIOBase):
    """A socket's incoming half, each read limited to the time that is left."""

    def __init__(self, source: socket.socket, deadline: float) -> None:
        self._source = source
        self._deadline = deadline
        self.has_ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer", /) -> int:
        self._source.settimeout(_left(self._deadline))
        received = self._source.recv_into(buffer)
        self.has_ended = received == 0
        return received

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)


def _content(response: HTTPResponse) -> tuple[bytes, bool]:
    """Up to `_MAX_ANSWER` bytes of the body, and whether the connection lasted for them."""
    try:
        content = response.read(_MAX_ANSWER)
    except (IncompleteRead, ConnectionError):
        return b"", False
    # http.client counts down the announced length; without an error, if the connection ends early.
    return content, not response.length or len(content) == _MAX_ANSWER


def _dial(host: str, port: int, deadline: float) -> socket.socket:
    """Connect to the first of the host's addresses that answers, none of them using up the time of the others.

    Resolving a name is the one step which the system does not let us limit.
    """
    addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    error: OSError = OSError(f"{host} has no address")
    for index, (family, kind, number, _, address) in enumerate(addresses):
        dialled = socket.socket(family, kind, number)
        try:
            dialled.settimeout(_left(deadline) / (len(addresses) - index))
            dialled.connect(address)
            dialled.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except OSError as failure:
            dialled.close()
            error = failure
        else:
            return dialled
    raise error


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
