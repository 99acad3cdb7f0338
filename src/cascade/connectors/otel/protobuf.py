"""Encoding of single fields and values as protobuf."""

from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue

# The field functions below rely on two properties of the wire format: the concatenation of two encoded messages is the merged
# message, and the concatenation of repeated fields is the list of both (protobuf.dev, "Encoding").
_LENGTH_DELIMITED = 2
_SEVEN_BITS = 0x7F
_NEGATIVE = 1 << 64


def field(number: int, content: bytes) -> bytes:
    """Return an encoded field that contains bytes, text or a message. The field number must be below 16."""
    size = len(content)
    return _TAGS[number] + (_SMALL[size] if size <= _SEVEN_BITS else varint(size)) + content


def varint(number: int) -> bytes:
    """Return a 64-bit integer as a protobuf varint: seven bits per byte, the lowest first."""
    if number < 0:
        number += _NEGATIVE
    encoded = bytearray()
    while number > _SEVEN_BITS:
        encoded.append(number & _SEVEN_BITS | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)


_TAGS = tuple(bytes((number << 3 | _LENGTH_DELIMITED,)) for number in range(16))
_SMALL = tuple(bytes((number,)) for number in range(_SEVEN_BITS + 1))


def key_value(key: str, value: Any) -> KeyValue:
    return KeyValue(key=key, value=any_value(value))


def any_value(value: Any) -> AnyValue:
    """Return the value as a protobuf message. It is a bool, 64-bit int, float or str, or a list or tuple of these."""
    match value:
        case bool():
            return AnyValue(bool_value=value)
        case int():
            return AnyValue(int_value=value)
        case float():
            return AnyValue(double_value=value)
        case list() | tuple():
            return AnyValue(array_value=ArrayValue(values=map(any_value, value)))
        case _:
            return AnyValue(string_value=value)
