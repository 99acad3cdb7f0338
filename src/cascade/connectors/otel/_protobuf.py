"""Protobuf by hand, only what is around messages that the generated classes have encoded.

In protobuf to concatenate two encoded messages is to merge them, and to concatenate repeated fields is to list both
(protobuf.dev, "Encoding").
"""

_LENGTH_DELIMITED = 2
_SEVEN_BITS = 0x7F


def field(number: int, content: bytes) -> bytes:
    """A field of bytes, or of a message, whose number is below 16."""
    return bytes((number << 3 | _LENGTH_DELIMITED,)) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    """A length as protobuf writes it: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > _SEVEN_BITS:
        encoded.append(number & _SEVEN_BITS | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
