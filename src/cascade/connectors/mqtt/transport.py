"""Event loop of the network thread, and the socket that paho uses."""

import asyncio
import contextlib
import encodings.idna  # noqa: F401 - sockets import it with the first host name, which can deadlock in a forked child
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any, Self, TypeVar

import aiomqtt
from paho.mqtt.reasoncodes import ReasonCode

from cascade.connectors.mqtt.packets import IncomingMessage, parse_acknowledgements, parse_publish

T = TypeVar("T")

CONNECT_TIMEOUT = 5.0
"""Seconds for TCP and TLS, and again for the broker's answer."""
CLOSE_TIMEOUT = 0.5
"""Seconds for the broker to close the connection after DISCONNECT."""
BLOCK_SIZE = 1 << 16
"""Bytes per system call."""


class NetworkLoop(asyncio.SelectorEventLoop):
    """The event loop for a Client. It has `add_reader` on every platform, unlike the default loop of Windows."""

    def run_in_executor(self, executor: object, func: Callable[..., T], *args: object) -> asyncio.Future[T]:  # noqa: ARG002
        """Call the function in a daemon thread. The interpreter joins the threads of an executor at its exit."""
        future: asyncio.Future[T] = self.create_future()

        def call() -> None:
            settle: Callable[[], None]
            try:
                settle = partial(future.set_result, func(*args))
            except Exception as error:  # noqa: BLE001 - raised again where it is awaited
                settle = partial(future.set_exception, error)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.call_soon_threadsafe(settle)

        threading.Thread(target=call, name="cascade-mqtt-connect", daemon=True).start()
        return future


class Transport:
    """Socket of a connection that reads and writes in blocks. paho gets it in place of an SSLContext.

    paho reads single bytes and writes single packets, which takes most of the time of a small message. It also leaves
    the socket open after a failed TLS handshake. This object closes it.
    """

    def __init__(self, context: ssl.SSLContext | None, on_tcp_connected: Callable[[float], None]) -> None:
        self._on_tcp_connected = on_tcp_connected
        self._start = time.monotonic()
        self.check_hostname = context is None or context.check_hostname
        self._context = context
        self._socket: Any = None
        self._unread, self._position = b"", 0
        self.unwritten = bytearray()
        self.is_disconnecting = False
        self.sent_at = self.received_at = 0.0
        """Times of the last bytes sent and received, in monotonic seconds."""

    def wrap_socket(self, plain: socket.socket, **options: Any) -> Self:
        self._on_tcp_connected(time.monotonic() - self._start)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = plain if self._context is None else self._context.wrap_socket(plain, **options)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def do_handshake(self) -> None:
        if self._context is not None:
            self._socket.do_handshake()

    def fileno(self) -> int:
        """The descriptor, or -1 if the socket is closed or was never open."""
        return -1 if self._socket is None else self._socket.fileno()

    @property
    def has_unread(self) -> bool:
        """Whether buffered bytes are unread, for which the system reports no event."""
        if self.fileno() < 0:
            return False
        return self._position < len(self._unread) or (self._context is not None and self._socket.pending() > 0)

    def recv(self, size: int) -> bytes:
        if self._position == len(self._unread):
            self._receive()
        start = self._position
        self._position = min(start + size, len(self._unread))
        return self._unread[start : self._position]

    def fill(self) -> None:
        """Read the available bytes if the buffer is empty. An error or the end is reported by paho's next read."""
        if self._position == len(self._unread):
            with contextlib.suppress(OSError):
                self._receive()

    def _receive(self) -> None:
        self._unread, self._position = self._socket.recv(BLOCK_SIZE), 0
        if self._unread:
            self.received_at = time.monotonic()
        self._acknowledge_at_once()

    def take_acknowledgements(self) -> list[tuple[int, int]]:
        """Remove the PUBACK packets at the start of the buffer. Return their packet ids and reason codes."""
        self._position, found = parse_acknowledgements(self._unread, self._position)
        return found

    def take_message(self) -> tuple[int, IncomingMessage] | None:
        """Remove the next packet if `parse_publish` can parse it. Return its packet id and the message."""
        found = parse_publish(self._unread, self._position)
        if found is None:
            return None
        self._position, packet_id, message = found
        return packet_id, message

    def send(self, data: bytes) -> int:
        if len(self.unwritten) >= BLOCK_SIZE:
            raise BlockingIOError
        self.unwritten += data
        return len(data)

    def flush(self) -> bool:
        """Write the bytes of `send`. Return whether the system has accepted all of them."""
        try:
            while self.unwritten:
                del self.unwritten[: self._socket.send(self.unwritten)]
                self.sent_at = time.monotonic()
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return False
        return True

    def close_copy(self) -> None:
        if self._socket is not None:
            self._socket.close()

    def close(self) -> None:
        """Close the socket. The first call closes only its sending side if `is_disconnecting` is set."""
        if self.fileno() >= 0:
            with contextlib.suppress(OSError):
                self.flush()
                if self.is_disconnecting:
                    self.is_disconnecting = False
                    self._socket.shutdown(socket.SHUT_WR)
                    return
            self._socket.close()

    async def wait_closed(self, loop: asyncio.AbstractEventLoop) -> None:
        """Wait until the broker closes the connection, at most `CLOSE_TIMEOUT` seconds.

        The system resets a connection that is closed with unread bytes. A slow broker would then lose DISCONNECT, and
        publish the Last Will.
        """
        descriptor, closed = self.fileno(), loop.create_future()
        if descriptor < 0:
            return

        def read() -> None:
            if self._discard_received() and not closed.done():
                closed.set_result(None)

        loop.add_reader(descriptor, read)
        try:
            await asyncio.wait([closed], timeout=CLOSE_TIMEOUT)
        finally:
            loop.remove_reader(descriptor)

    def _discard_received(self) -> bool:
        """Read and discard bytes. Return whether the broker has closed the connection."""
        try:
            return not self._socket.recv(BLOCK_SIZE)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True

    def _acknowledge_at_once(self) -> None:
        """Disable delayed TCP acknowledgements, which can delay the next short answer of a broker by 40 ms.

        Linux enables them again by itself, so this is repeated before each wait.
        """
        if hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def reason_of(error: BaseException) -> tuple[str, int]:
    """Return why there is no connection, as a short text, and the reason code of the broker or 0."""
    match error:
        case aiomqtt.MqttCodeError(rc=ReasonCode() as rc):
            return str(rc), rc.value
        case aiomqtt.MqttError() if error.__context__ is not None:  # aiomqtt keeps only the text of the cause
            return reason_of(error.__context__)
        case ssl.SSLCertVerificationError():
            return f"certificate verify failed: {error.verify_message}", 0
        case TimeoutError():
            return f"no answer within {CONNECT_TIMEOUT:g} s", 0
        case OSError():
            return (error.strerror or str(error) or type(error).__name__).lower(), 0
    return str(error) if isinstance(error, aiomqtt.MqttError) else f"{type(error).__name__}: {error}", 0


def unexpected_error_text(error: BaseException) -> str:
    """Return the warning about an unexpected error, with its traceback."""
    return "unexpected error in the connector: " + "".join(traceback.format_exception(error))
