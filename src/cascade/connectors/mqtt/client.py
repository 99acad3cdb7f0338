"""The aiomqtt client of one connection.

aiomqtt discards the properties of CONNACK and the reason codes of PUBACK. It waits for each message in an asyncio task, and
reads and writes each packet with separate system calls. This subclass passes the properties and reason codes to callbacks,
needs no asyncio task per message, and reads and writes in blocks.
"""

import asyncio
import contextlib
import logging
import math
import ssl
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar, cast

import aiomqtt
from paho.mqtt.client import MQTTMessage
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from cascade.connectors.mqtt.options import MqttOptions
from cascade.connectors.mqtt.packets import (
    MALFORMED_PACKET,
    MAX_INCOMING_BYTES,
    SESSION_ID,
    UNSUPPORTED_VERSION,
    WILL_EXPIRY,
    BrokerLimits,
    IncomingMessage,
    new_properties,
    puback_reason,
    publish_packet,
)
from cascade.connectors.mqtt.transport import CONNECT_TIMEOUT, Transport, reason_of

T = TypeVar("T")

_MQTT_5 = "MqttConnector requires MQTT 5"
_PING_FRACTION = 0.7
"""Fraction of the keepalive after which PINGREQ is sent."""
_MAX_READS = 64
"""Reads of packets before other callbacks of the event loop run."""
_UNACKNOWLEDGED = MQTTMessage()
"""Placeholder for each unacknowledged message in paho's table."""

# aiomqtt and paho also raise each error that they log. Without a handler their log lines would go to stderr.
_no_logger = logging.Logger("cascade.connectors.mqtt.client", logging.CRITICAL + 1)  # noqa: LOG001 - it has no parent


class Client(aiomqtt.Client):
    """Async context manager that connects. A clean exit sends DISCONNECT; an exception does not, so the broker publishes the will.

    `on_tcp_connected(seconds)` is called after the TCP handshake, in the thread that connects. The owner sets the other
    callbacks, which run in the event loop: `on_acknowledged(packet id, reason)` for each PUBACK of `send`,
    `on_received(message)` for each incoming message, and `on_activity()` after bytes were sent or received and after the
    end of the connection.
    """

    def __init__(
        self,
        options: MqttOptions,
        client_id: str,
        will_topic: str,
        session_id: str,
        limits: BrokerLimits,
        on_tcp_connected: Callable[[float], None],
    ) -> None:
        self._transport = Transport(options.context, on_tcp_connected)
        will_properties = new_properties(
            PacketTypes.WILLMESSAGE, MessageExpiryInterval=WILL_EXPIRY, UserProperty=(SESSION_ID, session_id)
        )
        super().__init__(
            options.hostname,
            options.port,
            username=options.username,
            password=options.password,
            logger=_no_logger,
            identifier=client_id,
            protocol=aiomqtt.ProtocolVersion.V5,
            will=aiomqtt.Will(will_topic, "offline", *limits.will, will_properties),
            timeout=CONNECT_TIMEOUT,
            keepalive=options.keepalive,
            clean_start=True,
            max_inflight_messages=0,  # Connection limits the unacknowledged messages
            properties=new_properties(PacketTypes.CONNECT, MaximumPacketSize=MAX_INCOMING_BYTES),
            tls_context=cast("ssl.SSLContext", self._transport),
        )
        self._next_packet_id = self._client._mid_generate  # noqa: SLF001
        self._client._mid_generate = self._unused_packet_id  # type: ignore[method-assign]  # noqa: SLF001
        self._client.disable_logger()
        self._client.connect_timeout = CONNECT_TIMEOUT
        self.limits = limits
        self.keepalive = options.keepalive
        """Seconds: Server Keep Alive of the broker, or the option `keepalive`. 0 turns the mechanism off."""
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
            aiomqtt.MqttError: The broker is unreachable or refuses the connection. `reason` has the cause, `code` the reason code.
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
        """Disconnect. Unlike aiomqtt's method, it does not send DISCONNECT after an exception."""
        if kind is None and not self.is_over:
            self._transport.is_disconnecting = True
            self._client.disconnect()
            self.flush()
            await self._transport.wait_closed(self._loop)
        self.drop()

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
        """Whether packets are queued that the system has not accepted."""
        return self._client.want_write() or bool(self._transport.unwritten)

    def send(self, topic: str, body: bytes, qos: int, properties: bytes, *, retain: bool = False) -> int:
        """Queue a message and return its packet id, which is 0 for QoS 0. The PUBACK of QoS 1 calls `on_acknowledged`.

        `properties` are the packed properties.
        """
        packet_id = self._unused_packet_id() if qos else 0
        if qos:
            self._client._out_messages[packet_id] = _UNACKNOWLEDGED  # noqa: SLF001 - paho reports the PUBACK of these messages only
        self._transport.unwritten += publish_packet(topic, body, properties, packet_id, retain=retain)
        self._write_later()
        return packet_id

    def _unused_packet_id(self) -> int:
        """Return the next packet id that no unanswered packet has. paho and aiomqtt call it for their packets too."""
        packet_id = self._next_packet_id()
        while (
            packet_id in self._client._out_messages  # noqa: SLF001
            or packet_id in self._pending_subscribes
            or packet_id in self._pending_unsubscribes
        ):
            packet_id = self._next_packet_id()
        return packet_id

    def keep_alive(self) -> None:
        """Send PINGREQ when it is due. Call it at least four times in `keepalive` seconds.

        Any bytes from the broker count as the answer, because PINGRESP can be queued behind many packets.
        """
        client, transport = self._client, self._transport
        client._last_msg_out = max(client._last_msg_out, transport.sent_at)  # noqa: SLF001 - paho does not handle all packets
        client._last_bytes_received = max(client._last_bytes_received, transport.received_at)  # noqa: SLF001
        if transport.received_at > client._ping_t:  # noqa: SLF001
            client._ping_t = 0  # noqa: SLF001
        client.loop_misc()

    def flush(self) -> None:
        """Write the queued packets, as far as the system accepts them. The event loop calls it too."""
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
        """Write the queued packets. Return whether the system has accepted all of them."""
        self._client.loop_write()
        while (is_written := self._transport.flush()) and self._client.want_write():
            self._client.loop_write()
        return is_written

    def drop(self) -> None:
        """End the connection at once, without DISCONNECT."""
        self._unregister(self._transport.fileno())
        self._transport.close()
        if not self.is_over:
            self._disconnected.set_result(None)

    def close_in_child(self) -> None:
        """Close the copy of the socket in a forked child. While a copy is open, the broker does not detect the end of the parent."""
        self._transport.close_copy()

    # Overrides of aiomqtt's methods.

    async def _wait_for(self, fut: Awaitable[T], timeout: float | None) -> T:  # noqa: ASYNC109 - aiomqtt's signature
        """Wait for an answer until the connection ends. aiomqtt's method would continue to wait after the end."""
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
        if reason_code.is_failure:  # paho then reports a protocol error as well
            self._end(str(reason_code), reason_code.value)
            self.other_server = getattr(properties, "ServerReference", "")
        else:
            self.limits.accept(properties)
            self._assigned_id = getattr(properties, "AssignedClientIdentifier", "")
            self.keepalive = self._client.keepalive
            # paho sends PINGREQ after this time. The broker must receive it within `keepalive`.
            self._client._keepalive = _PING_FRACTION * self.keepalive  # type: ignore[assignment]  # noqa: SLF001
        super()._on_connect(client, userdata, flags, reason_code, properties)

    def _on_disconnect(self, client: Any, userdata: Any, flags: Any, reason_code: Any, properties: Any = None) -> None:  # noqa: ARG002
        if self.is_over:
            return
        # paho reports "Unspecified error" for a connection that was closed without DISCONNECT.
        is_vague = str(reason_code) == "Unspecified error" and not flags.is_disconnect_packet_from_server
        if self._connected.done() or flags.is_disconnect_packet_from_server:
            self.other_server = getattr(properties, "ServerReference", "")
            self._end(*(("the connection was lost", 0) if is_vague else (str(reason_code), reason_code.value)))
        elif is_vague:
            self.limits.is_unanswered = True
            self._end(f"the broker closed the connection without an answer to CONNECT; {_MQTT_5}", 0)
        else:
            self._end(f"the broker's answer to CONNECT is malformed; {_MQTT_5}", MALFORMED_PACKET)

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
        # Called in the thread that connects.
        self._loop.call_soon_threadsafe(self._loop.add_reader, sock.fileno(), self._read)

    def _on_socket_close(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ARG002
        self._unregister(sock.fileno())

    def _on_socket_register_write(self, client: Any, userdata: Any, sock: Any) -> None:  # noqa: ARG002
        self._write_later()

    def _write_later(self) -> None:
        # All packets of one iteration of the event loop are written together.
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
            for _ in range(_MAX_READS):
                # paho must read the rest of a packet that it has begun to read.
                if self._client._in_packet["command"] or not self._take_packets():  # noqa: SLF001
                    self._client.loop_read()
                if not self._transport.has_unread:
                    break
            else:
                self._loop.call_soon(self._read)  # the system reports no event for buffered bytes
        except Exception as error:  # noqa: BLE001 - as in `flush`
            self._end(*reason_of(error))
        self.on_activity()

    def _take_packets(self) -> bool:
        """Parse acknowledgements, or the next message, without paho. Return whether there were any."""
        if answers := self._transport.take_acknowledgements():
            for packet_id, code in answers:
                if self._client._out_messages.pop(packet_id, None):  # noqa: SLF001 - see `send`
                    self._on_publish(self._client, None, packet_id, puback_reason(code), None)
            return True
        if (found := self._transport.take_message()) is None:
            return False
        packet_id, message = found
        self.on_received(message)
        if packet_id:
            self._client._send_puback(packet_id)  # noqa: SLF001 - paho's `ack` works only with manual acknowledgements
        return True

    def _flush_queued(self) -> None:
        if self._is_writing:  # otherwise `flush` was called meanwhile
            self.flush()

    def _write_more(self) -> None:
        self.flush()
        self.on_activity()

    def _end(self, reason: str, code: int) -> None:
        """Record the end of the connection. `_disconnected` gets no exception, since asyncio would log it if nothing awaits it."""
        if not self.is_over:
            is_outdated = code == UNSUPPORTED_VERSION
            self.reason, self.code = f"the broker does not support MQTT 5; {_MQTT_5}" if is_outdated else reason, code
            self._disconnected.set_result(None)
            self.on_activity()

    def _unregister(self, descriptor: int) -> None:
        if descriptor >= 0:
            self._loop.remove_reader(descriptor)
            self._loop.remove_writer(descriptor)


def _ignore(*_: Any) -> None:
    pass
