"""One connection to a broker: paho's client, driven by a thread of ours through its interface for external loops."""

import contextlib
import encodings.idna  # noqa: F401 - sockets import it with the first host name, and in a thread beside a fork it is too late
import selectors
import socket
import ssl
import time
from collections.abc import Callable
from typing import Any, cast

from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from cascade.connectors.mqtt._options import MqttOptions
from cascade.connectors.mqtt._packets import MAX_INCOMING_BYTES, WILL_EXPIRY, new_properties

CONNECT_TIMEOUT = 5.0
"""Seconds for TCP and TLS, and again for the broker's answer."""
FAILURE = 0x80
"""Reason codes from here on say that something was refused (MQTT 5.0, 2.4)."""

_PERMANENT = frozenset({0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C})
"""CONNACK: protocol version, client id, user name or password, not authorized, banned, authentication method."""
_TAKEN_OVER = 0x8E
MOST_READS = 64
"""Messages between two looks at what is to be sent."""

Answered = Callable[[ReasonCode], None]


class Link:
    """A connection from its start to its end. All calls come from one thread.

    `is_up` from the broker's consent on; `is_over` once it is lost or refused: `reason` says why then. It is read and
    written a packet at a time by `turn`, which hands acknowledgements and messages on.
    """

    def __init__(self, options: MqttOptions, client_id: str, will_topic: str, wake: socket.socket) -> None:
        self.is_up = self.is_over = self.is_refused = self.is_taken_over = False
        self.reason = ""
        self.receive_maximum = 65_535
        self.maximum_packet_size: int | None = None
        self.on_message: Callable[[MQTTMessage], None] = _ignore
        self.on_acknowledged: Callable[[int, ReasonCode], None] = _ignore
        self.own_publishes = 0
        """How many messages beside the outbox's are not acknowledged."""
        self._incoming = 0
        self._options = options
        self._answers: dict[int, Answered] = {}
        self._wake = wake
        self._selector = selectors.DefaultSelector()
        self._selector.register(wake, selectors.EVENT_READ)
        self._events = selectors.EVENT_READ
        self._answer_by = 0.0
        self._tls = _Tls(options.context) if options.context is not None else None
        self.client = self._make_client(client_id)
        self.client.will_set(will_topic, "offline", 1, retain=True, properties=_will_properties())

    def open(self) -> None:
        """Connect; blocks for at most `CONNECT_TIMEOUT` for each address of the host. Raises OSError."""
        options = self._options
        limits = new_properties(PacketTypes.CONNECT, MaximumPacketSize=MAX_INCOMING_BYTES)
        self.client.connect(options.hostname, options.port, options.keepalive, clean_start=True, properties=limits)
        self._answer_by = time.monotonic() + CONNECT_TIMEOUT
        if (connection := self.client.socket()) is not None:
            self._selector.register(connection, selectors.EVENT_READ)
        self.write()

    def wait(self, timeout: float) -> bool:
        """Wait until the connection can be read, or written if need be, or somebody wakes us; whether it can be."""
        _acknowledge_at_once(self.client.socket())
        ready = {key.fileobj for key, _ in self._selector.select(timeout)}
        if self._wake in ready:
            with contextlib.suppress(BlockingIOError):
                self._wake.recv(4096)
        return bool(ready.difference({self._wake}))

    def publish(self, topic: str, body: bytes, *, retain: bool = False) -> None:
        """Send a message of our own, with QoS 1."""
        info = self.client.publish(topic, body, 1, retain)
        self.own_publishes += 1
        self._answers[info.mid] = self._published

    def subscribe(self, pattern: str, answered: Answered) -> None:
        options = SubscribeOptions(
            qos=1, retainAsPublished=True, retainHandling=SubscribeOptions.RETAIN_SEND_ON_SUBSCRIBE
        )
        _, mid = self.client.subscribe([(pattern, options)])
        self._expect(mid, answered)

    def unsubscribe(self, pattern: str, answered: Answered) -> None:
        _, mid = self.client.unsubscribe(pattern)
        self._expect(mid, answered)

    @property
    def is_answer_due(self) -> bool:
        """Whether something of our own has not been answered yet."""
        return bool(self._answers)

    def read(self) -> None:
        """Handle what has come in: a packet at least, if there is one.

        Of messages many, so that a flood of them does not keep us from the acknowledgements that stand behind.
        """
        self.client.on_publish = self._on_publish
        most = self._incoming + MOST_READS
        while not self.is_over:
            before = self._incoming
            self.client.loop_read()
            if not (before < self._incoming < most or _has_more(self.client.socket())):
                break

    def write(self) -> None:
        """Send what is queued, as far as the system takes it."""
        # What it has to tell of QoS 0, that it was written, costs more than the sending; we can see that by ourselves.
        self.client.on_publish = None
        self.client.loop_write()
        if (connection := self.client.socket()) is not None:
            events = selectors.EVENT_READ | (selectors.EVENT_WRITE if self.client.want_write() else 0)
            if events != self._events:
                self._events = events
                self._selector.modify(connection, events)

    def keep_alive(self) -> None:
        """To be called again and again."""
        self.client.loop_misc()
        if not self.is_up and not self.is_over and time.monotonic() > self._answer_by:
            self.drop(f"no answer within {CONNECT_TIMEOUT:g} s")

    def drop(self, reason: str) -> None:
        """End the connection without a word: the broker publishes the Last Will."""
        self._end(reason)
        if (connection := self.client.socket()) is not None:
            with contextlib.suppress(OSError):
                connection.close()

    def close(self) -> None:
        """Let go of everything; a connection that is still there ends without a word."""
        self.drop("closed")
        if self._tls is not None:
            self._tls.close()
        self._selector.close()

    def _make_client(self, client_id: str) -> Client:
        options = self._options
        client = Client(CallbackAPIVersion.VERSION2, client_id, protocol=MQTTProtocolVersion.MQTTv5)
        client.max_inflight_messages_set(0)  # the window is ours
        client.connect_timeout = CONNECT_TIMEOUT
        client.username = options.username
        client.password = options.password
        if self._tls is not None:
            client.tls_set_context(cast("ssl.SSLContext", self._tls))
        client.on_socket_open = _without_delay
        client.on_socket_register_write = _ignore  # so that nothing is written before `write`
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_subscribe = self._on_answer
        client.on_unsubscribe = self._on_answer
        return client

    def _expect(self, mid: int | None, answered: Answered) -> None:
        if mid is not None:  # otherwise the connection is lost, and paho will say so
            self._answers[mid] = answered

    def _end(self, reason: str) -> None:
        self.reason = self.reason or reason
        self.is_over, self.is_up = True, False

    def _published(self, _: ReasonCode) -> None:
        self.own_publishes -= 1

    def _on_connect(
        self, _c: Client, _u: object, _f: ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        if reason.is_failure:
            self.is_refused = reason.value in _PERMANENT
            self._end(str(reason))
            return
        self.receive_maximum = getattr(properties, "ReceiveMaximum", self.receive_maximum)
        self.maximum_packet_size = getattr(properties, "MaximumPacketSize", None)
        self.is_up = True

    def _on_disconnect(
        self, _c: Client, _u: object, flags: DisconnectFlags, reason: ReasonCode, _p: Properties | None
    ) -> None:
        self.is_taken_over = flags.is_disconnect_packet_from_server and reason.value == _TAKEN_OVER
        # Of a connection that has just gone away paho knows no more than that there was an error.
        is_vague = str(reason) == "Unspecified error" and not flags.is_disconnect_packet_from_server
        self._end("the connection was lost" if is_vague else str(reason))

    def _on_message(self, _c: Client, _u: object, message: MQTTMessage) -> None:
        self._incoming += 1
        self.on_message(message)

    def _on_publish(self, _c: Client, _u: object, mid: int, reason: ReasonCode, _p: Properties) -> None:
        answered = self._answers.pop(mid, None) if self._answers else None
        if answered is not None:
            answered(reason)
        else:
            self.on_acknowledged(mid, reason)

    def _on_answer(self, _c: Client, _u: object, mid: int, reasons: list[ReasonCode], _p: Properties | None) -> None:
        if reasons and (answered := self._answers.pop(mid, None)) is not None:
            answered(reasons[0])


class _Tls:
    """An SSLContext as paho uses it, that knows its socket: paho forgets to close one whose handshake has failed."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.check_hostname = context.check_hostname
        self._context = context
        self._socket: ssl.SSLSocket | None = None

    def wrap_socket(self, plain: socket.socket, **options: Any) -> ssl.SSLSocket:
        self._socket = self._context.wrap_socket(plain, **options)
        return self._socket

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()


def _ignore(*_: Any) -> None:
    pass


def _without_delay(_client: Client, _userdata: object, connection: Any) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _acknowledge_at_once(connection: Any) -> None:
    """Mosquitto's second short answer waits until the first is acknowledged, for which Linux takes its time: 40 ms.

    The system forgets that it was told, so it is told again before each wait.
    """
    if connection is not None and hasattr(socket, "TCP_QUICKACK"):
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def _has_more(connection: Any) -> bool:
    """Whether TLS has decrypted more than was read: the system does not know of that."""
    return isinstance(connection, ssl.SSLSocket) and connection.pending() > 0


def _will_properties() -> Properties:
    return new_properties(PacketTypes.WILLMESSAGE, MessageExpiryInterval=WILL_EXPIRY)


def reason_of(error: Exception) -> str:
    """Why there is no connection, in a few words."""
    match error:
        case ssl.SSLCertVerificationError():
            return f"certificate verify failed: {error.verify_message}"
        case TimeoutError():
            return f"no answer within {CONNECT_TIMEOUT:g} s"
        case OSError():
            return (error.strerror or str(error) or type(error).__name__).lower()
    return f"{type(error).__name__}: {error}"
