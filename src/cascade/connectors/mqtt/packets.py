"""Encodes and parses MQTT 5 packets and their properties, and stores the limits of the broker."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers
from paho.mqtt.reasoncodes import ReasonCode

from cascade.telemetry.identity import parse_tracestate
from cascade.telemetry.limits import MAX_MESSAGE_BYTES
from cascade.telemetry.state_schedule import ScheduledState

CONTENT_TYPE = "application/json"
MAX_INCOMING_BYTES = 2 << 20
"""Maximum Packet Size in CONNECT. The broker discards larger packets. A constraint has a few hundred bytes."""
MAX_ALIASES = 1_000
"""Largest number of topic aliases of one connection."""
MAX_MISSES = 16
"""Packets without an alias after which a new topic replaces an older one."""
WILL_EXPIRY = 86_400
"""Seconds for which the broker retains the Last Will: one day."""
SESSION_ID = "session_id"
"""User property of presence and of the Last Will."""

ALIAS_INVALID, RETAIN_NOT_SUPPORTED, QOS_NOT_SUPPORTED = 0x94, 0x9A, 0x9B
"""In CONNACK the cause is the Last Will, in DISCONNECT it is a message."""
FAILURE = 0x80
"""Reason codes from 0x80 on are failures (MQTT 5.0, 2.4)."""
PERMANENT = frozenset({0x81, 0x84, 0x85, 0x86, 0x87, 0x8A, 0x8C})
"""CONNACK: malformed packet, protocol version, client id, user name or password, not authorized, banned, authentication
method."""
TRANSIENT = frozenset({0x80, 0x83, 0x88, 0x89, 0x96, 0x97, 0x9C, 0x9D, 0x9F})
"""PUBACK, DISCONNECT, CONNACK: unspecified, implementation specific, server unavailable, server busy, message rate too high,
quota exceeded, use another server, server moved, connection rate exceeded. A later attempt can succeed."""
TAKEN_OVER = 0x8E
"""DISCONNECT: another client has connected with the same id."""
OTHER_SERVER = frozenset({0x9C, 0x9D})
CLIENT_ONLY = frozenset({TAKEN_OVER, 0x96, 0x97, 0x9F})
"""DISCONNECT: the broker ends the connection of this client only."""
MALFORMED_PACKET, UNSUPPORTED_VERSION = 0x81, 0x84
"""CONNACK: the broker does not support MQTT 5."""
_MAX_PACKET_BYTES = MAX_MESSAGE_BYTES + (1 << 16)
"""Limit for a broker without Maximum Packet Size: the largest message, with its topic and properties."""
_MIN_PACKET_BYTES, _CONTINUATION_BIT, _EXPIRY_PROPERTIES = 4, 0x80, b"\x05\x02"
"""Bytes of the shortest PUBLISH or PUBACK packet; the continuation bit of a length; properties with Message Expiry Interval only."""
_TRACEPARENT_LENGTH = len("00-") + 32 + len("-") + 16 + len("-00")
_ZERO = "0" * _TRACEPARENT_LENGTH


class IncomingMessage(NamedTuple):
    """A message from the broker. `expiry` is the remaining Message Expiry Interval in seconds."""

    topic: str
    payload: bytes
    retain: bool
    expiry: int | None


@dataclass(slots=True, eq=False)
class RetainedMessage:
    """A message that is not from the outbox: the state of a run, or the presence, which has no state."""

    topic: str
    body: bytes
    properties: bytes
    state: ScheduledState | None = None
    retain: bool = True


def new_properties(kind: int, **values: Any) -> Properties:
    """Return the properties of a packet. `kind` is the packet type; `values` have paho's names."""
    properties = Properties(kind)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


def publish_properties(traceparent: bytes, tracestate: str = "", alias: int = 0) -> bytes:
    """Return the packed properties of a message. The tracestate is omitted without a traceparent."""
    before, after = _around_traceparent(tracestate if traceparent else None, alias)
    return before + traceparent + after


@lru_cache(maxsize=256)
def state_properties(expiry: int) -> bytes:
    """Return the packed properties of a retained message that the broker removes after `expiry` seconds."""
    return _packed(MessageExpiryInterval=max(1, expiry))


@lru_cache(maxsize=1_024)
def _around_traceparent(tracestate: str | None, alias: int) -> tuple[bytes, bytes]:
    """Return the packed properties before and after the traceparent, which has a constant length. None: no traceparent."""
    if tracestate is None:
        return _packed(alias), b""
    pairs = [("traceparent", _ZERO)] + ([("tracestate", tracestate)] if tracestate else [])
    before, _, after = _packed(alias, UserProperty=pairs).partition(_ZERO.encode())
    return before, after


def _packed(alias: int = 0, **values: Any) -> bytes:
    if alias:
        values["TopicAlias"] = alias
    packed: bytes = new_properties(PacketTypes.PUBLISH, ContentType=CONTENT_TYPE, **values).pack()  # type: ignore[no-untyped-call]
    return packed


class TopicAliases:
    """Topic aliases of one connection (MQTT 5.0, 3.3.2.3.4), which replace the topic in a packet.

    If there are more topics than aliases, a new topic replaces the oldest one, but only after `MAX_MISSES` packets without an
    alias. Most aliases therefore stay in use while many runs publish in turn, and the topics of ended runs are replaced.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = min(maximum, MAX_ALIASES)
        self._by_topic: dict[str, int] = {}
        self._count = self._misses = 0

    def find(self, topic: str) -> tuple[str, int]:
        """Return the topic and the alias for a packet. The topic is empty if the broker has the alias; 0 is no alias."""
        alias = self._by_topic.get(topic)
        if alias is not None:
            return "", alias
        if self._count >= self._maximum:
            self._misses += 1
            if self._misses < MAX_MISSES or not self._maximum:
                return topic, 0
        return topic, self._count % self._maximum + 1

    def add(self, topic: str, alias: int) -> None:
        """Record that a packet with this result of `find` is sent."""
        if self._count >= self._maximum:
            del self._by_topic[next(iter(self._by_topic))]
            self._misses = 0
        self._by_topic[topic] = alias
        self._count += 1


class BrokerLimits:
    """Limits of the broker of a session. Sizes are in bytes.

    They are properties of each CONNACK (MQTT 5.0, 3.2.2.3). Some brokers without retained messages or QoS 1 refuse the
    Last Will instead, with a reason code or without an answer. A reason code applies until the session ends.
    """

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._reported = set[str]()
        self._refused = set[int]()
        self.is_unanswered = False
        """Whether the broker has closed a connection without an answer to CONNECT."""
        self.accept(None)

    def accept(self, properties: Properties | None) -> None:
        """Read the limits from a CONNACK."""
        self._properties = properties
        self.retain_available = bool(self._value("RetainAvailable", 1)) and RETAIN_NOT_SUPPORTED not in self._refused
        self.maximum_qos = 0 if QOS_NOT_SUPPORTED in self._refused else min(1, self._value("MaximumQoS", 1))
        self.receive_maximum = self._value("ReceiveMaximum", 65_535)
        self.maximum_packet_size = self._value("MaximumPacketSize", _MAX_PACKET_BYTES)
        self.topic_alias_maximum = 0 if ALIAS_INVALID in self._refused else self._value("TopicAliasMaximum", 0)
        self.wildcards_available = bool(self._value("WildcardSubscriptionAvailable", 1))
        if not self.retain_available:
            self._report("retained messages: late subscribers receive neither presence nor states of runs")
        if not self.maximum_qos:
            self._report("QoS 1: messages that it does not receive are not sent again")

    @property
    def will(self) -> tuple[int, bool]:
        """QoS and retain flag of the Last Will: the lowest for a broker that has closed a connection and has never answered."""
        is_unknown = self.is_unanswered and self._properties is None
        return (0, False) if is_unknown else (self.maximum_qos, self.retain_available)

    def refuse(self, code: int) -> bool:
        """Record a refused feature. Return whether the next connection can succeed without it."""
        if code in self._refused or code not in {ALIAS_INVALID, RETAIN_NOT_SUPPORTED, QOS_NOT_SUPPORTED}:
            return False
        self._refused.add(code)
        self.accept(self._properties)
        return True

    def _value(self, name: str, default: int) -> int:
        value: int = getattr(self._properties, name, default)
        return value

    def _report(self, text: str) -> None:
        if text not in self._reported:
            self._reported.add(text)
            self._warn(f"the broker does not support {text}")


def publish_packet(topic: str, body: bytes, properties: bytes, packet_id: int, *, retain: bool = False) -> bytes:
    """Return a PUBLISH packet (MQTT 5.0, 3.3): with QoS 1, or with QoS 0 if the packet id is 0. paho takes five times as long."""
    name, number = topic.encode(), packet_id.to_bytes(2) if packet_id else b""
    size = 2 + len(name) + len(number) + len(properties) + len(body)
    header = _fixed_header(PacketTypes.PUBLISH << 4 | (2 if packet_id else 0) | retain, size)
    return b"".join((header, len(name).to_bytes(2), name, number, properties, body))


@lru_cache(maxsize=4_096)
def _fixed_header(kind: int, size: int) -> bytes:
    return bytes((kind,)) + VariableByteIntegers.encode(size)  # type: ignore[no-any-return, no-untyped-call]


def parse_acknowledgements(data: bytes, start: int) -> tuple[int, list[tuple[int, int]]]:
    """Parse PUBACK packets (MQTT 5.0, 3.4). Return the position of their end, and their packet ids and reason codes.

    They end at the first other or incomplete packet. paho takes ten times as long.
    """
    found = []
    while len(data) - start >= _MIN_PACKET_BYTES and data[start] == PacketTypes.PUBACK << 4:
        length = data[start + 1]
        end = start + 2 + length
        if not 2 <= length < _CONTINUATION_BIT or end > len(data):  # noqa: PLR2004 - the packet id
            break
        found.append((int.from_bytes(data[start + 2 : start + 4]), data[start + 4] if end > start + 4 else 0))
        start = end
    return start, found


def parse_publish(data: bytes, start: int) -> tuple[int, int, IncomingMessage] | None:
    """Parse a common PUBLISH packet (MQTT 5.0, 3.3). Return the position of its end, its packet id or 0, and the message.

    The packet is common if `data` contains all of it, it has QoS 0 or 1, and no property except Message Expiry Interval. For
    other packets the result is None, and paho parses them, which takes ten times as long.
    """
    if len(data) - start < _MIN_PACKET_BYTES or data[start] & 0xF4 != PacketTypes.PUBLISH << 4:
        return None
    length, position = data[start + 1], start + 2
    if length & _CONTINUATION_BIT:
        length, position = length - _CONTINUATION_BIT + (data[position] << 7), position + 1
    end, flags = position + length, data[start]
    offset = position + 2 + int.from_bytes(data[position : position + 2])
    topic, packet_id = data[position + 2 : offset], 0
    if flags & 2:
        packet_id, offset = int.from_bytes(data[offset : offset + 2]), offset + 2
    if data[position - 1] & _CONTINUATION_BIT or end > len(data) or offset >= end or not topic.isascii():
        return None
    expiry = None
    if data[offset : offset + 2] == _EXPIRY_PROPERTIES and offset + 5 < end:
        expiry, offset = int.from_bytes(data[offset + 2 : offset + 6]), offset + 5
    elif data[offset]:
        return None
    return end, packet_id, IncomingMessage(topic.decode(), data[offset + 1 : end], bool(flags & 1), expiry)


@lru_cache
def puback_reason(code: int) -> ReasonCode:
    return ReasonCode(PacketTypes.PUBACK, identifier=code)


def traceparent(payload: dict[str, Any]) -> bytes:
    """Return the W3C traceparent of the span of a message, or b"" if it has none."""
    try:
        text = f"00-{payload['trace_id']}-{payload['span_id']}-{payload['trace_flags']:02x}"
    except (KeyError, TypeError, ValueError):
        return b""
    return text.encode() if len(text) == _TRACEPARENT_LENGTH and text.isascii() else b""


def tracestate(payload: dict[str, Any]) -> str:
    """Return the W3C tracestate of a message, or "" if it has no valid one."""
    value = payload.get("tracestate")
    return parse_tracestate(value) if isinstance(value, str) else ""


def packet_bytes(topic: str, size: int) -> int:
    """Return the largest size of a packet. `size` is that of its properties and body."""
    fixed_header, topic_length, packet_id = 5, 2, 2
    return fixed_header + topic_length + len(topic.encode()) + packet_id + size
