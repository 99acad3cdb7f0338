"""The aiomqtt client of one connection.

aiomqtt discards the properties of CONNACK and the reason codes of PUBACK, waits for each message in a task, and reads
and writes each packet with system calls of its own. This subclass keeps the answers, passes them to its owner without a
task, and reads and writes in blocks.
"""

import asyncio
import contextlib
import encodings.idna  # noqa: F401 - sockets import it with the first host name; beside a fork that can be too late
import logging
import math
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache, partial
from typing import Any, Self, TypeVar, cast

import aiomqtt
from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from cascade.connectors.mqtt.options import MqttOptions
from cascade.connectors.mqtt.packets import (
    MAX_INCOMING_BYTES,
    SESSION_ID,
    WILL_EXPIRY,
    BrokerLimits,
    IncomingMessage,
    new_properties,
    parse_acknowledgements,
    parse_publish,
    publish_packet,
)

T = TypeVar("T")

CONNECT_TIMEOUT = 5.0
"""Seconds for TCP and TLS, and again for the broker's answer."""
FAREWELL = 0.5
"""Seconds for the broker to close the connection after DISCONNECT."""
FAILURE = 0x80
"""Reason codes from here on are refusals (MQTT 5.0, 2.4)."""
PERMANENT = frozenset({0x81, 0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C})
"""CONNACK: malformed packet, protocol version, client id, user name or password, not authorized, banned, authentication
method."""
TRANSIENT = frozenset({0x80, 0x83, 0x88, 0x89, 0x96, 0x97, 0x9C, 0x9D, 0x9F})
"""PUBACK, DISCONNECT, CONNACK: unspecified, implementation specific, server unavailable, server busy, message rate too high,
quota exceeded, use another server, server moved, connection rate exceeded. The same may succeed later."""
TAKEN_OVER = 0x8E
"""DISCONNECT: another client has connected with the same id."""
OTHER_SERVER = frozenset({0x9C, 0x9D})
OWN = frozenset({TAKEN_OVER, 0x96, 0x97, 0x9F})
"""DISCONNECT: the reason is this client alone, and the broker goes on."""

_MALFORMED, _UNSUPPORTED_VERSION = 0x81, 0x84

_MQTT_5 = "MqttConnector requires MQTT 5"
_PING = 0.7
"""Part of the keepalive after which PINGREQ is sent."""
_BLOCK = 1 << 16
"""Bytes of one system call."""
_MOST_READS = 64
"""Reads of packets before other callbacks of the event loop run."""
_SENT = MQTTMessage()
"""paho's record of each unacknowledged message."""

# aiomqtt and paho report each error to their caller too; without a handler their log lines would go to stderr.
_silent = logging.Logger("cascade.connectors.mqtt.client", logging.CRITICAL + 1)  # noqa: LOG001 - it has no parent


class Client(aiomqtt.Client):
    """Connects when it is entered. A clean exit sends DISCONNECT; an exception does not, so the broker publishes the will.

    `on_reached(seconds)` runs when TCP has connected, in the thread that connects. The owner sets the other callbacks, which
    run in the event loop: `on_acknowledged(packet id, reason)` for each PUBACK of `send`, `on_received(message)`
    for each incoming message, and `on_activity()` whenever the broker has sent or accepted bytes, and when the connection
    ends.
    """

    def __init__(
        self,
        options: MqttOptions,
        client_id: str,
        will_topic: str,
        session_id: str,
        limits: BrokerLimits,
        on_reached: Callable[[float], None],
    ) -> None:
        self._transport = _Transport(options.context, on_reached)
        will_properties = new_properties(
            PacketTypes.WILLMESSAGE, MessageExpiryInterval=WILL_EXPIRY, UserProperty=(SESSION_ID, session_id)
        )
        super().__init__(
            options.hostname,
            options.port,
            username=options.username,
            password=options.password,
            logger=_silent,
            identifier=client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            will=aiomqtt.Will(will_topic, "offline", *limits.will, will_properties),
            timeout=CONNECT_TIMEOUT,
            keepalive=options.keepalive,
            clean_start=True,
            max_inflight_messages=0,  # the connection has a window of its own
            properties=new_properties(PacketTypes.CONNECT, MaximumPacketSize=MAX_INCOMING_BYTES),
            tls_context=cast("ssl.SSLContext", self._transport),
        )
        self._next_packet_id = self._client._mid_generate  # noqa: SLF001
        self._client._mid_generate = self._unused_packet_id  # type: ignore[method-assign]  # noqa: SLF001
        self._client.disable_logger()
        self._client.connect_timeout = CONNECT_TIMEOUT
        self.limits = limits
        self.keepalive = options.keepalive
        """Seconds: Server Keep Alive of the broker, or the given ones. With 0 the broker does not expect packets."""
        self._assigned_id = ""
        self.reason, self.code = "", 0
        self.other_server = ""
        """Server Reference, if the broker ended or refused the connection with one."""
        self.on_acknowledged: Callable[[int, ReasonCode], None] = _ignore
        self.on_received: Callable[[IncomingMessage], None] = _ignore
        self.on_activity: Callable[[], None] = _ignore
        self._is_writing = False
        self._thread = threading.get_ident()

    async def __aenter__(self) -> Self:
        """Connect.

        Raises:
            aiomqtt.MqttError: The broker is unreachable or refuses; `reason` has the cause and `code` the reason code.
        """
        try:
            await super().__aenter__()
        except BaseException as error:
            self._end(*reason_of(error))
            self.drop()
            raise
        if self.reason:  # aiomqtt does not notice a connection that ends right after CONNACK
            self.drop()
            raise aiomqtt.MqttError(self.reason)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Disconnect. aiomqtt sends DISCONNECT after an exception too."""
        if kind is None and not self.is_over:
            self._transport.is_leaving = True
            self._client.disconnect()
            self.flush()
            await self._until_broker_closes()
        self.drop()

    async def _until_broker_closes(self) -> None:
        """Wait until the broker closes the connection, at most `FAREWELL` seconds.

        The system resets a connection that is closed before everything is read. A slow broker then loses DISCONNECT, and
        publishes the Last Will.
        """
        descriptor, closed = self._transport.fileno(), self._loop.create_future()
        if descriptor < 0:
            return

        def read() -> None:
            if self._transport.discard_received() and not closed.done():
                closed.set_result(None)

        self._loop.add_reader(descriptor, read)
        await asyncio.wait([closed], timeout=FAREWELL)
        self._forget(descriptor)

    @property
    def is_over(self) -> bool:
        """Whether the connection has ended."""
        return self._disconnected.done()

    @property
    def identifier(self) -> str:
        """The client id: assigned by the broker, or the given one."""
        return self._assigned_id or super().identifier

    @property
    def wants_write(self) -> bool:
        """Whether packets wait for the system to accept them."""
        return self._client.want_write() or bool(self._transport.unwritten)

    def send(self, topic: str, body: bytes, qos: int, properties: bytes, *, retain: bool = False) -> int:
        """Queue a message and return its packet id, 0 for QoS 0. `on_acknowledged` is called for QoS 1; nothing waits for it.

        `properties` are packed.
        """
        packet_id = self._unused_packet_id() if qos else 0
        if qos:
            self._client._out_messages[packet_id] = _SENT  # noqa: SLF001 - paho passes on the PUBACK of these messages only
        self._transport.unwritten += publish_packet(topic, body, properties, packet_id, retain=retain)
        self._write_later()
        return packet_id

    def _unused_packet_id(self) -> int:
        """Return the next packet id that no unanswered packet has. paho and aiomqtt call it for theirs too."""
        packet_id = self._next_packet_id()
        while (
            packet_id in self._client._out_messages  # noqa: SLF001
            or packet_id in self._pending_subscribes
            or packet_id in self._pending_unsubscribes
        ):
            packet_id = self._next_packet_id()
        return packet_id

    def keep_alive(self) -> None:
        """Send PINGREQ when it is due. Call at least four times in `keepalive` seconds.

        Any bytes from the broker count as the answer: behind many packets, PINGRESP can be late.
        """
        client, transport = self._client, self._transport
        client._last_msg_out = max(client._last_msg_out, transport.sent_at)  # noqa: SLF001 - paho has not seen all packets
        client._last_bytes_received = max(client._last_bytes_received, transport.received_at)  # noqa: SLF001
        if transport.received_at > client._ping_t:  # noqa: SLF001
            client._ping_t = 0  # noqa: SLF001
        client.loop_misc()

    def flush(self) -> None:
        """Write the queued packets, as far as the system accepts them. It is called by the event loop too."""
        self._is_writing = False
        descriptor = self._transport.fileno()
        if descriptor < 0:
            return
        try:
            is_written = self._write()
        except Exception as error:  # noqa: BLE001 - aiomqtt treats all errors of a socket alike
            self._read()  # the broker may have sent a reason before it closed the connection
            self._end(*reason_of(error))
            return
        if self._transport.fileno() < 0:
            return
        if is_written:
            self._loop.remove_writer(descriptor)
        else:
            self._loop.add_writer(descriptor, self._write_more)

    def _write(self) -> bool:
        """Write the queued packets; whether the system has accepted all of them."""
        self._client.loop_write()
        while (is_written := self._transport.flush()) and self._client.want_write():
            self._client.loop_write()
        return is_written

    def drop(self) -> None:
        """End the connection at once, without DISCONNECT."""
        self._forget(self._transport.fileno())
        self._transport.close()
        if not self.is_over:
            self._disconnected.set_result(None)

    def leave_to_parent(self) -> None:
        """Close a forked child's copy of the socket. While one copy is open, the broker does not notice the parent's end."""
        self._transport.close_copy()

    # Overrides of aiomqtt's methods.

    async def _wait_for(self, fut: Awaitable[T], timeout: float | None) -> T:  # noqa: ASYNC109 - aiomqtt's signature
        """Wait for an answer until the connection ends. aiomqtt waits on, for an answer that cannot come."""
        answer: asyncio.Future[T] = asyncio.ensure_future(fut)
        limit = self.timeout if timeout is None else None if timeout == math.inf else timeout
        either: set[asyncio.Future[Any]] = {answer, self._disconnected}
        try:
            await asyncio.wait(either, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
        finally:
            answer.cancel()
        if self._disconnected.done():
            raise aiomqtt.MqttError(self.reason)
        raise aiomqtt.MqttError(f"no answer within {limit:g} s")

    def _on_connect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:
        if reason_code.is_failure:  # paho goes on to report a protocol error
            self._end(str(reason_code), reason_code.value)
            self.other_server = getattr(properties, "ServerReference", "")
        else:
            self.limits.accept(properties)
            self._assigned_id = getattr(properties, "AssignedClientIdentifier", "")
            self.keepalive = self._client.keepalive
            # paho waits for the whole time. PINGREQ must have reached the broker by then.
            self._client._keepalive = _PING * self.keepalive  # type: ignore[assignment]  # noqa: SLF001
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:  # noqa: ARG002
        if self.is_over:
            return
        # For a connection that was closed without DISCONNECT, paho has no more than "Unspecified error".
        is_vague = str(reason_code) == "Unspecified error" and not flags.is_disconnect_packet_from_server
        if self._connected.done() or flags.is_disconnect_packet_from_server:
            self.other_server = getattr(properties, "ServerReference", "")
            self._end(*(("the connection was lost", 0) if is_vague else (str(reason_code), reason_code.value)))
        elif is_vague:
            self.limits.is_unanswered = True
            self._end(f"the broker closed the connection without an answer to CONNECT; {_MQTT_5}", 0)
        else:
            self._end(f"the broker's answer to CONNECT is malformed; {_MQTT_5}", _MALFORMED)

    def _on_publish(self, client: Any, userdata: Any, mid: int, reason_code: ReasonCode, properties: Any) -> None:
        if mid in self._pending_publishes:
            super()._on_publish(client, userdata, mid, reason_code, properties)
        else:
            self.on_acknowledged(mid, reason_code)

    def _on_message(self, client: Any, userdata: Any, message: MQTTMessage) -> None:  # noqa: ARG002
        with contextlib.suppress(UnicodeDecodeError):  # the topic is not in UTF-8
            expiry = getattr(message.properties, "MessageExpiryInterval", None)
            self.on_received(IncomingMessage(message.topic, bytes(message.payload), message.retain, expiry))

    def _on_socket_open(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ARG002
        # In the thread that connects.
        self._loop.call_soon_threadsafe(self._loop.add_reader, sock.fileno(), self._read)

    def _on_socket_close(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ARG002
        self._forget(sock.fileno())

    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ARG002
        self._write_later()

    def _write_later(self) -> None:
        # All packets of one turn of the event loop are written together.
        if not self._is_writing:
            self._is_writing = True
            is_own_thread = threading.get_ident() == self._thread
            (self._loop.call_soon if is_own_thread else self._loop.call_soon_threadsafe)(self._flush_queued)

    def _on_socket_unregister_write(self, client: Any, userdata: Any, sock: Any) -> None:
        pass  # `flush` does it

    # The socket.

    def _read(self) -> None:
        try:
            self._transport.fill()
            for _ in range(_MOST_READS):
                # Once paho has read the start of a packet, it reads the rest.
                if self._client._in_packet["command"] or not self._take_packets():  # noqa: SLF001
                    self._client.loop_read()
                if not self._transport.has_unread:
                    break
            else:
                self._loop.call_soon(self._read)  # the system has no event for bytes that are read already
        except Exception as error:  # noqa: BLE001 - as in `flush`
            self._end(*reason_of(error))
        self.on_activity()

    def _take_packets(self) -> bool:
        """Receive acknowledgements, or the next message, without paho; whether there were any."""
        if answers := self._transport.take_acknowledgements():
            for packet_id, code in answers:
                if self._client._out_messages.pop(packet_id, None):  # noqa: SLF001 - see `send`
                    self._on_publish(self._client, None, packet_id, _reason(code), None)
            return True
        if (found := self._transport.take_message()) is None:
            return False
        packet_id, message = found
        self.on_received(message)
        if packet_id:
            self._client._send_puback(packet_id)  # noqa: SLF001 - `ack` is for clients that acknowledge all by themselves
        return True

    def _flush_queued(self) -> None:
        if self._is_writing:  # otherwise the owner has called `flush` meanwhile
            self.flush()

    def _write_more(self) -> None:
        self.flush()
        self.on_activity()

    def _end(self, reason: str, code: int) -> None:
        """Record the end of the connection. `_disconnected` has no exception: asyncio logs those that nothing awaits."""
        if not self.is_over:
            is_outdated = code == _UNSUPPORTED_VERSION
            self.reason, self.code = f"the broker does not support MQTT 5; {_MQTT_5}" if is_outdated else reason, code
            self._disconnected.set_result(None)
            self.on_activity()

    def _forget(self, descriptor: int) -> None:
        if descriptor >= 0:
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)


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


class _Transport:
    """The socket of a connection, read and written in blocks. paho accepts it in place of an SSLContext.

    paho reads single bytes and writes single packets, which takes most of the time of a small message. It also leaves
    the socket open after a TLS handshake that failed; this object closes it.
    """

    def __init__(self, context: ssl.SSLContext | None, on_reached: Callable[[float], None]) -> None:
        self._on_reached = on_reached
        self._start = time.monotonic()
        self.check_hostname = context is None or context.check_hostname
        self._context = context
        self._socket: Any = None
        self._unread, self._position = b"", 0
        self.unwritten = bytearray()
        self.is_leaving = False
        self.sent_at = self.received_at = 0.0
        """Times at which the system has accepted bytes, and had some."""

    def wrap_socket(self, plain: socket.socket, **options: Any) -> Self:
        self._on_reached(time.monotonic() - self._start)
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
        """Whether bytes wait of which the system does not know."""
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
        """Read what the system has, unless there are bytes that were read before. paho notices an error or the end."""
        if self._position == len(self._unread):
            with contextlib.suppress(OSError):
                self._receive()

    def _receive(self) -> None:
        self._unread, self._position = self._socket.recv(_BLOCK), 0
        if self._unread:
            self.received_at = time.monotonic()
        self._acknowledge_at_once()

    def take_acknowledgements(self) -> list[tuple[int, int]]:
        """Remove the next packets as far as they are PUBACK; return their packet ids and reason codes."""
        self._position, found = parse_acknowledgements(self._unread, self._position)
        return found

    def take_message(self) -> tuple[int, IncomingMessage] | None:
        """Remove the next packet if `parse_publish` reads it; return its packet id and the message."""
        found = parse_publish(self._unread, self._position)
        if found is None:
            return None
        self._position, packet_id, message = found
        return packet_id, message

    def send(self, data: bytes) -> int:
        if len(self.unwritten) >= _BLOCK:
            raise BlockingIOError
        self.unwritten += data
        return len(data)

    def flush(self) -> bool:
        """Write what `send` has taken; whether the system has accepted all of it."""
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
        """Close the socket, or only its sending side if `is_leaving` and it was not closed so far."""
        if self.fileno() >= 0:
            with contextlib.suppress(OSError):
                self.flush()
                if self.is_leaving:
                    self.is_leaving = False
                    self._socket.shutdown(socket.SHUT_WR)
                    return
            self._socket.close()

    def discard_received(self) -> bool:
        """Read and discard bytes; whether the peer has closed the connection."""
        try:
            return not self._socket.recv(_BLOCK)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True

    def _acknowledge_at_once(self) -> None:
        """Switch off delayed TCP acknowledgements, for which a broker's next short answer would wait 40 ms.

        Linux switches them on again by itself, so this is repeated before each wait.
        """
        if hasattr(socket, "TCP_QUICKACK"):
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def reason_of(error: BaseException) -> tuple[str, int]:
    """Why there is no connection, in a few words, and the broker's reason code or 0."""
    match error:
        case aiomqtt.MqttCodeError(rc=ReasonCode() as rc):
            return str(rc), rc.value
        case aiomqtt.MqttError() if error.__context__ is not None:  # aiomqtt keeps the text of the cause alone
            return reason_of(error.__context__)
        case ssl.SSLCertVerificationError():
            return f"certificate verify failed: {error.verify_message}", 0
        case TimeoutError():
            return f"no answer within {CONNECT_TIMEOUT:g} s", 0
        case OSError():
            return (error.strerror or str(error) or type(error).__name__).lower(), 0
    return str(error) if isinstance(error, aiomqtt.MqttError) else f"{type(error).__name__}: {error}", 0


@lru_cache
def _reason(code: int) -> ReasonCode:
    return ReasonCode(PacketTypes.PUBACK, identifier=code)


def _ignore(*_: Any) -> None:
    pass
