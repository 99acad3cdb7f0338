"""MQTT 5 properties of packets, packed once if many packets share them."""

from functools import lru_cache
from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cascade.telemetry.identity import parse_tracestate

CONTENT_TYPE = "application/json"
MAX_INCOMING_BYTES = 2 << 20
"""Maximum Packet Size in CONNECT: the broker discards larger packets. A constraint has some hundred bytes."""
WILL_EXPIRY = 86_400
"""Seconds for which the broker retains the Last Will: one day."""

_TRACEPARENT_LENGTH = len("00-") + 32 + len("-") + 16 + len("-00")


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


def packed(kind: int, **values: Any) -> bytes:
    form: bytes = new_properties(kind, **values).pack()  # type: ignore[no-untyped-call]
    return form


_PLAIN = PackedProperties(packed(PacketTypes.PUBLISH, ContentType=CONTENT_TYPE))
# Such properties end with the traceparent, whose length is constant.
_TRACED = packed(
    PacketTypes.PUBLISH, ContentType=CONTENT_TYPE, UserProperty=("traceparent", "0" * _TRACEPARENT_LENGTH)
)[:-_TRACEPARENT_LENGTH]

PROPERTIES_BYTES = len(_TRACED) + _TRACEPARENT_LENGTH
_TRACESTATE_BYTES = 1 + 2 + len("tracestate") + 2 + 1
"""Bytes of the user property without its value, and one more for the length of all properties."""


def publish_properties(traceparent: bytes, tracestate: str = "") -> PackedProperties:
    """Return the properties of a message. Without a traceparent, the tracestate is left out too."""
    if not traceparent:
        return _PLAIN
    if not tracestate:
        return PackedProperties(_TRACED + traceparent)
    before, after = _with_tracestate(tracestate)
    return PackedProperties(before + traceparent + after)


@lru_cache(maxsize=256)
def state_properties(expiry: int) -> PackedProperties:
    """Return the properties of a retained message that the broker removes after so many seconds."""
    return PackedProperties(packed(PacketTypes.PUBLISH, ContentType=CONTENT_TYPE, MessageExpiryInterval=max(1, expiry)))


@lru_cache(maxsize=256)
def _with_tracestate(tracestate: str) -> tuple[bytes, bytes]:
    """The packed properties before and after the traceparent."""
    pairs = [("traceparent", "0" * _TRACEPARENT_LENGTH), ("tracestate", tracestate)]
    whole = packed(PacketTypes.PUBLISH, ContentType=CONTENT_TYPE, UserProperty=pairs)
    before, _, after = whole.partition(b"0" * _TRACEPARENT_LENGTH)
    return before, after


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


def packet_bytes(topic: str, body_size: int, tracestate: str = "") -> int:
    """Return the largest size of a message's packet."""
    fixed_header, lengths, packet_id = 5, 2, 2
    properties = PROPERTIES_BYTES + (len(tracestate) + _TRACESTATE_BYTES if tracestate else 0)
    return fixed_header + lengths + len(topic.encode()) + packet_id + properties + body_size
