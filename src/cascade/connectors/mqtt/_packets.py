"""MQTT 5 properties: made once where they are the same for very many packets."""

from functools import lru_cache
from typing import Any

from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from cascade.telemetry.identity import parse_tracestate

CONTENT_TYPE = "application/json"
MAX_INCOMING_BYTES = 2 << 20
"""A broker that is told so does not even deliver what is bigger; a constraint has some hundred bytes."""
WILL_EXPIRY = 86_400
"""Seconds: a process that is gone for a day is history."""

_TRACEPARENT_LENGTH = len("00-") + 32 + len("-") + 16 + len("-00")


class PackedProperties(Properties):
    """Properties of a packet in the form in which they travel.

    Making paho's and packing them takes half of all the time that a message costs.
    """

    names: dict[str, int] = {}  # noqa: RUF012 - none that could be shown: paho asks only for the packed form

    def __init__(self, packed: bytes) -> None:
        object.__setattr__(self, "_packed", packed)

    def pack(self) -> bytes:
        packed: bytes = object.__getattribute__(self, "_packed")
        return packed


def new_properties(kind: int, **values: Any) -> Properties:
    """Properties of a kind of packet, by paho's names."""
    properties = Properties(kind)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(properties, name, value)
    return properties


def packed(kind: int, **values: Any) -> bytes:
    form: bytes = new_properties(kind, **values).pack()  # type: ignore[no-untyped-call]
    return form


_PLAIN = PackedProperties(packed(PacketTypes.PUBLISH, ContentType=CONTENT_TYPE))
# The traceparent is what such properties end with, and its length is always the same.
_TRACED = packed(
    PacketTypes.PUBLISH, ContentType=CONTENT_TYPE, UserProperty=("traceparent", "0" * _TRACEPARENT_LENGTH)
)[:-_TRACEPARENT_LENGTH]

PROPERTIES_BYTES = len(_TRACED) + _TRACEPARENT_LENGTH
_TRACESTATE_BYTES = 1 + 2 + len("tracestate") + 2 + 1
"""Of its user property, without the value; the last byte is for the length of all properties, which grows with it."""


def publish_properties(traceparent: bytes, tracestate: str = "") -> PackedProperties:
    """The properties of a message; an empty traceparent is left out, and the tracestate with it."""
    if not traceparent:
        return _PLAIN
    if not tracestate:
        return PackedProperties(_TRACED + traceparent)
    before, after = _with_tracestate(tracestate)
    return PackedProperties(before + traceparent + after)


@lru_cache(maxsize=256)
def _with_tracestate(tracestate: str) -> tuple[bytes, bytes]:
    """The packed properties before and after the traceparent."""
    pairs = [("traceparent", "0" * _TRACEPARENT_LENGTH), ("tracestate", tracestate)]
    whole = packed(PacketTypes.PUBLISH, ContentType=CONTENT_TYPE, UserProperty=pairs)
    before, _, after = whole.partition(b"0" * _TRACEPARENT_LENGTH)
    return before, after


def traceparent(payload: dict[str, Any]) -> bytes:
    """W3C's header for what a message tells of; empty if it does not say."""
    try:
        text = f"00-{payload['trace_id']}-{payload['span_id']}-{payload['trace_flags']:02x}"
    except (KeyError, TypeError, ValueError):
        return b""
    return text.encode() if len(text) == _TRACEPARENT_LENGTH and text.isascii() else b""


def tracestate(payload: dict[str, Any]) -> str:
    """The header that belongs beside `traceparent`; empty if the message has no valid one."""
    value = payload.get("tracestate")
    return parse_tracestate(value) if isinstance(value, str) else ""


def packet_bytes(topic: str, body_size: int, tracestate: str = "") -> int:
    """The most that a message takes on the wire."""
    fixed_header, lengths, packet_id = 5, 2, 2
    properties = PROPERTIES_BYTES + (len(tracestate) + _TRACESTATE_BYTES if tracestate else 0)
    return fixed_header + lengths + len(topic.encode()) + packet_id + properties + body_size
