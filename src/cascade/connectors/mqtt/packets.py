"""MQTT 5 properties of packets, packed once if many packets share them."""

from functools import lru_cache
from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cascade.telemetry.identity import parse_tracestate

CONTENT_TYPE = "application/json"
MAX_INCOMING_BYTES = 2 << 20
"""Maximum Packet Size in CONNECT: the broker discards larger packets. A constraint has some hundred bytes."""
MAX_ALIASES = 1_000
"""Topics of one connection that have an alias at a time."""
MISSES = 16
"""Packets without an alias before a new topic replaces one that has an alias."""
WILL_EXPIRY = 86_400
"""Seconds for which the broker retains the Last Will: one day."""
SESSION_ID = "session_id"
"""User property of presence and of the Last Will."""

_TRACEPARENT_LENGTH = len("00-") + 32 + len("-") + 16 + len("-00")
_ZERO = "0" * _TRACEPARENT_LENGTH


class PackedProperties(Properties):
    """Properties in packed form. To create paho's and pack them takes half of the time of a message."""

    names: dict[str, int] = {}  # noqa: RUF012 - paho uses the packed form alone

    def __init__(self, packed: bytes) -> None:
        object.__setattr__(self, "_packed", packed)

    def pack(self) -> bytes:
        packed: bytes = object.__getattribute__(self, "_packed")
        return packed


def new_properties(kind: int, **values: Any) -> Properties:
    """Return properties of a kind of packet, by paho's names."""
    properties = Properties(kind)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


def publish_properties(traceparent: bytes, tracestate: str = "", alias: int = 0) -> bytes:
    """Return the packed properties of a message. Without a traceparent, the tracestate is left out too."""
    before, after = _around_traceparent(tracestate if traceparent else None, alias)
    return before + traceparent + after


@lru_cache(maxsize=256)
def state_properties(expiry: int) -> PackedProperties:
    """Return the properties of a retained message that the broker removes after so many seconds."""
    return PackedProperties(_packed(MessageExpiryInterval=max(1, expiry)))


@lru_cache(maxsize=1_024)
def _around_traceparent(tracestate: str | None, alias: int) -> tuple[bytes, bytes]:
    """The packed properties before and after the traceparent, whose length is constant. None: there is none."""
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
    """Topic aliases of one connection (MQTT 5.0, 3.3.2.3.4), so that a packet need not repeat the topic.

    If there are more topics than aliases, a new topic replaces the one that was added first, but only after
    `MISSES` packets without an alias. So most aliases stay in use while the topics of many runs take turns, and the
    topics of runs that have ended are replaced.
    """

    def __init__(self, maximum: int) -> None:
        self._maximum = min(maximum, MAX_ALIASES)
        self._by_topic: dict[str, int] = {}
        self._count = self._misses = 0

    def find(self, topic: str) -> tuple[str, int]:
        """Return the topic of the packet, which is empty if the broker has its alias, and the alias, or 0 for none."""
        alias = self._by_topic.get(topic)
        if alias is not None:
            return "", alias
        if self._count >= self._maximum:
            self._misses += 1
            if self._misses < MISSES or not self._maximum:
                return topic, 0
        return topic, self._count % self._maximum + 1

    def add(self, topic: str, alias: int) -> None:
        """Record that a packet with this topic and this alias, which `find` has returned, is sent."""
        if self._count >= self._maximum:
            del self._by_topic[next(iter(self._by_topic))]
            self._misses = 0
        self._by_topic[topic] = alias
        self._count += 1


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
    """Return the largest size of a message's packet, from the size of its properties and its body."""
    fixed_header, topic_length, packet_id = 5, 2, 2
    return fixed_header + topic_length + len(topic.encode()) + packet_id + size
